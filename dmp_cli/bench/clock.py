"""How the seconds of stages are taken: around calls, by objects that stand in for others."""

import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


@dataclass
class Clock:
    """Seconds of all calls of each stage; `settle` waits until the device has nothing to do."""

    settle: Callable[[], None]
    seconds: defaultdict[str, float] = field(default_factory=lambda: defaultdict(float))

    def timed(self, stage: str, function: Callable[P, R], *args: P.args, **how: P.kwargs) -> R:
        """What the function gives, its time put down."""
        self.settle()
        start = time.perf_counter()
        result = function(*args, **how)
        self.settle()
        self.seconds[stage] += time.perf_counter() - start
        return result

    def around(self, thing: Any, stages: Mapping[str, str]) -> Any:
        """A thing whose methods `stages` are timed, each as the stage that it names."""
        return Instead(
            thing,
            {
                method: partial(self.timed, stage, getattr(thing, method))
                for method, stage in stages.items()
            },
        )


class Instead:
    """An object some of whose methods are others; all else of it is as it was."""

    def __init__(self, thing: Any, methods: Mapping[str, Callable[..., Any]]) -> None:
        self._thing, self._methods = thing, methods

    def __getattr__(self, name: str) -> Any:
        return self._methods[name] if name in self._methods else getattr(self._thing, name)
