"""Shards: which images of a list are those of one machine of several, without a word between them.

An image belongs to a shard by the hash of its name below its root, so that it stays there when
others come or go, and each machine finds its own from the same folder.
"""

import hashlib
import re
from collections.abc import Mapping, Sequence

from dmp_cli.errors import UsageError
from dmp_cli.jobs import Job

Shard = tuple[int, int]  # number, counted from 1, and how many there are

_MOST = 1_000_000
_BLOCK = 100  # frames of a clip that stay together: to begin in the middle of one costs decoding


def parse(text: str | None, environment: Mapping[str, str]) -> Shard | None:
    """`2/8`, the second of eight; `auto`, as Slurm or a launcher says. None for the whole.

    UsageError for anything else.
    """
    if text is None:
        return None
    if text == "auto":
        return _from(environment)
    match = re.fullmatch(r"(\d+)/(\d+)", text)
    if not match:
        raise UsageError(f"--shard {text!r}: not of the form I/N", "the first of four is 1/4")
    number, count = int(match[1]), int(match[2])
    if not 1 <= number <= count <= _MOST:
        raise UsageError(f"--shard {text}: there is no such part", "the first of four is 1/4")
    return number, count


def _from(environment: Mapping[str, str]) -> Shard:
    """From the variables of a Slurm array (its tasks may begin anywhere), or of a launcher."""
    array = [f"SLURM_ARRAY_TASK_{name}" for name in ("ID", "MIN", "STEP", "COUNT")]
    if array[0] in environment:
        at, least, step, count = (_number(environment, name) for name in array)
        return _checked((at - least) // max(step, 1) + 1, count)
    if "RANK" in environment:
        return _checked(_number(environment, "RANK") + 1, _number(environment, "WORLD_SIZE"))
    raise UsageError(
        "--shard auto: neither SLURM_ARRAY_TASK_ID nor RANK is set", "name it: --shard 1/4"
    )


def _number(environment: Mapping[str, str], name: str) -> int:
    text = environment.get(name, "1" if name.endswith("STEP") else "")
    if not text.isdecimal():
        raise UsageError(f"--shard auto: {name} is {text!r}, not a number", "name it: --shard 1/4")
    return int(text)


def _checked(number: int, count: int) -> Shard:
    if not 1 <= number <= count:
        raise UsageError(f"--shard auto: part {number} of {count}", "name it: --shard 1/4")
    return number, count


def part(jobs: Sequence[Job], shard: Shard | None) -> list[Job]:
    """The jobs of a shard, in their order."""
    if shard is None:
        return list(jobs)
    number, count = shard
    return [job for job in jobs if _place(job) % count == number - 1]


def _place(job: Job) -> int:
    block = "" if job.frame is None else f"\0{job.frame // _BLOCK}"
    name = f"{job.name}{block}".encode(errors="surrogateescape")
    return int.from_bytes(hashlib.blake2b(name, digest_size=8).digest())
