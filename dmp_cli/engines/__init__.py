"""Ways to run a plan: each module has `run(plan, jobs) -> Iterator[Result]`."""
