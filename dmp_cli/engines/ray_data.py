"""Ray Data: readers as tasks, a network on each accelerator as an actor, writers as tasks.

This is the side of the driver: the cluster, the way of the jobs through it, what arrives.
"""

import json
import os
import pickle
import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from functools import partial
from itertools import chain, groupby
from math import ceil
from pathlib import Path
from typing import Any

from dmp_cli.engines import flow, ray_cluster, ray_work
from dmp_cli.engines.ray_cluster import Cluster
from dmp_cli.engines.ray_work import Drawn, Numbered, Work
from dmp_cli.errors import ResourceError, UsageError
from dmp_cli.host import Host, completed
from dmp_cli.jobs import Job, Result
from dmp_cli.plan import Plan
from dmp_cli.signals import PATIENCE
from dmp_cli.urls import url_of

_BATCH = 8  # images that go to an accelerator together, unless the plan says how many
_FRAMES = 100  # of a clip that one task reads: to begin in the middle costs decoding
_BLOCKS = 1000  # tasks that a run becomes, about
_STORE = 200 << 20  # bytes
_LOOK = 0.2  # seconds between two looks at whether to stop
_PATIENCE = 2.0  # seconds for an answer, once it is to stop
_BYTES = 28  # that a pixel at full size takes at most while it is read or written


@dataclass(frozen=True)
class Way:
    """How a run lies on a cluster."""

    predictors: int
    gpus: float  # of each
    share: int  # predictors on one machine that has no accelerator
    batch: int  # images that go to a network together
    far: bool  # workers may be on other machines
    memory: float  # bytes that each reader and writer reserves; 0: none


@contextmanager
def opened(
    plan: Plan, note: Callable[[str], None], address: str | None = None, verbose: bool = False
) -> Iterator[Callable[..., Iterator[Result]]]:
    """Join or start a cluster, and give what takes jobs as `engines.flow.stream` does.

    The networks are loaded with the first jobs; `note` is told then where they run. Raises
    UsageError if Ray is not installed or the plan names a device by number, ResourceError if there
    is no cluster at `address`.
    """
    ray_cluster.require()
    if ":" in plan.device:
        raise UsageError(
            f"--device {plan.device}: with --engine ray the cluster chooses which", "--device cuda"
        )
    shares = _number("DMP_RAY_GPUS", 1.0), _number("DMP_RAY_PREDICTORS", 0.0)
    host = _host(plan)
    with ray_cluster.connected(address, _store(host), verbose) as cluster:
        way = way_for(plan, cluster, *shares)
        where = f"{way.gpus:g} GPU each" if way.gpus else "on the CPU"
        nodes = "a node" if cluster.nodes == 1 else f"{cluster.nodes} nodes"
        kind = "joined" if cluster.joined else "started"
        networks = "1 network" if way.predictors == 1 else f"{way.predictors} networks"
        note(f"Ray cluster of {nodes} {kind}: {networks}, {where}")
        yield partial(_stream, host, way, note)


def _host(plan: Plan) -> Host:
    """The host of a plan as the readers need it: with what the backbone's VAE asks for.

    The device is not looked for: this machine may not have what the cluster has.
    """
    from dmp_cli.predict import find_backbone

    host = completed(plan)
    backbone = next(iter(host.recipes.values())).backbone
    half = plan.dtype == "fp16" or (plan.dtype == "auto" and plan.device.startswith("cuda"))
    folder, _ = find_backbone(backbone, half)
    vae = json.loads((folder / "vae" / "config.json").read_text())
    return replace(host, multiple=2 ** (len(vae["block_out_channels"]) - 1))


def _number(name: str, without: float) -> float:
    """A number above 0 of the environment; UsageError for what is none."""
    text = os.environ.get(name)
    try:
        number = without if text is None else float(text)
    except ValueError:
        number = -1.0
    if not (0 < number < 1e4 or text is None):
        raise UsageError(f"{name} is {text!r}, not a number above 0", "unset it, or name a number")
    return number


def way_for(plan: Plan, cluster: Cluster, each: float, wanted: float) -> Way:
    """A network on each GPU, or several that share one; without GPUs, one on each node."""
    gpus = each if cluster.gpus and plan.device in ("auto", "cuda") else 0.0
    if plan.device == "cuda" and not gpus:
        raise ResourceError("--device cuda: the cluster has no GPU", "use --device cpu")
    # of a GPU that is shared, only whole shares count
    room = int(cluster.gpus * (1 // each) if each < 1 else cluster.gpus // each)
    if gpus and not room:
        raise ResourceError(
            f"DMP_RAY_GPUS is {each:g}: the cluster has {cluster.gpus:g}", "name a smaller number"
        )
    predictors = ceil(wanted) or (room if gpus else cluster.nodes)
    share = 1 if gpus else -(-predictors // cluster.nodes)
    batch = plan.together or (_BATCH if gpus else 1)
    # where there is little, no more than leaves room for a reader beside a writer
    memory = min(plan.in_flight * _BYTES, cluster.memory // 4)
    return Way(predictors, gpus, share, batch, cluster.joined, memory)


def _store(host: Host) -> int:
    """Bytes for what is on its way on one machine: some batches that were drawn."""
    area = sum((recipe.size or 1024) ** 2 for recipe in host.recipes.values())
    return max(_STORE, 4 * (host.plan.together or _BATCH) * area * 3 * 4)


# The driver --------------------------------------------------------------------------------


def _stream(
    host: Host,
    way: Way,
    note: Callable[[str], None],
    jobs: Sequence[Job],
    aside: Path | None = None,
    stopped: Callable[[], bool] = lambda: False,
) -> Iterator[Result]:
    """As `engines.flow.stream`, by the workers of the cluster, in the order in which they come."""
    with flow.kept_aside(host.plan, jobs, aside) as folder:
        if way.far and aside and folder != aside and url_of(aside):
            raise UsageError(
                "--range run on a cluster needs a folder that all its machines see",
                "name the range: --range LO,HI, or choose another -o",
            )
        threads = os.environ.get("OMP_NUM_THREADS")
        work = Work(host, str(Path.cwd()), folder.absolute(), threads, way.share)
        with (
            closing(_drawn(work, way, jobs, stopped)) as drawn,
            closing(_told(drawn, note)) as arriving,
        ):
            first = next(arriving, None)
            every = chain([first], arriving) if first else ()
            results = flow.counted((one.what for one in every), len(jobs), stopped)
            yield from flow.completed(first.host if first else host, results, stopped)


def _told(arriving: Iterable[Drawn], note: Callable[[str], None]) -> Generator[Drawn]:
    """The same; what several networks say of themselves is said once."""
    said: set[str] = set()
    for one in arriving:
        for text in one.notes:
            if text not in said:
                note(text)
        said.update(one.notes)
        yield one


def _gate() -> Any:
    """The gate of a run, on the driver's node: on another it would die with that one."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=True)
    gate: Any = ray.remote(num_cpus=0)(ray_work.Gate)
    return gate.options(scheduling_strategy=here).remote()


def _drawn(
    work: Work, way: Way, jobs: Sequence[Job], stopped: Callable[[], bool]
) -> Generator[Drawn]:
    """What arrives of the jobs, each once. Once `stopped`, of those alone that were begun.

    If a machine of the cluster is lost, Ray does again what was there; where it cannot, what has
    not arrived is begun anew, as long as something arrives in between.
    """
    import ray

    seen: set[int] = set()
    numbered = list(enumerate(jobs))
    while True:
        before = len(seen)
        try:
            left = [one for one in numbered if one[0] not in seen]
            yield from _once(work, way, left, stopped, seen)
            return
        except ray.exceptions.RayError as error:
            if stopped() or len(seen) == before or not _of_a_machine(error):
                raise _lost(error) from error


def _of_a_machine(error: Exception) -> bool:
    """Whether a machine that went away may be the cause."""
    from ray import exceptions

    gone = exceptions.RayActorError, exceptions.NodeDiedError, exceptions.ObjectLostError
    return isinstance(error, (*gone, exceptions.WorkerCrashedError))


def _once(
    work: Work,
    way: Way,
    numbered: Sequence[Numbered],
    stopped: Callable[[], bool],
    seen: set[int],
) -> Generator[Drawn]:
    """What arrives of numbered jobs, in one dataset; their numbers are added to `seen`.

    Closed before, what the networks have begun is written yet, but not told.
    """
    gate = _gate()
    rows = _Rows(_dataset(work, way, numbered, gate))
    begun: set[int] | None = None
    try:
        while begun is None or not begun <= seen:
            if begun is None and stopped():
                begun = _closed(gate)
                continue
            held = rows.next(_LOOK)
            if held is None and rows.over:
                return
            if isinstance(held, Drawn) and held.number not in seen:
                seen.add(held.number)
                yield held
    except GeneratorExit:
        _finish(rows, gate, seen)
        raise
    finally:
        rows.close()


def _finish(rows: "_Rows", gate: Any, seen: set[int]) -> None:
    """Wait until what has been begun is written, as long as a signal would leave."""
    from ray.exceptions import RayError

    last = time.monotonic() + PATIENCE
    with suppress(RayError):  # what the cluster fails at now adds nothing to why it ends
        begun = _closed(gate)
        while not begun <= seen and not rows.over and time.monotonic() < last:
            held = rows.next(_LOOK)
            if isinstance(held, Drawn):
                seen.add(held.number)


def _closed(gate: Any) -> set[int]:
    """Let no more batches be drawn: the numbers of what has been begun."""
    import ray

    try:
        begun: set[int] = ray.get(gate.close.remote(), timeout=_PATIENCE)
    except ray.exceptions.GetTimeoutError:  # it is not up yet: nothing has passed
        return set()
    return begun


def _lost(error: Exception) -> Exception:
    """What Ray raises, as the user is to be told; what a worker raised stays as it is."""
    from ray.exceptions import RayTaskError

    if isinstance(error, RayTaskError):
        return error  # type: ignore[no-any-return]
    why = str(error).strip().split("\n", maxsplit=1)[0]
    return ResourceError(
        f"the Ray cluster fails: {why}", "run it again to go on; -v shows what Ray says"
    )


class _Rows:
    """What a dataset gives, taken by a thread, so that one can wait for it and yet look around."""

    def __init__(self, dataset: Any) -> None:
        self.over = False
        self._left = threading.Event()
        self._queue: queue.Queue[Any] = queue.Queue(2)
        self._thread = threading.Thread(target=self._take, args=[dataset], daemon=True)
        self._thread.start()

    def _take(self, dataset: Any) -> None:
        try:
            tables = dataset.iter_batches(
                batch_size=None, prefetch_batches=0, batch_format="pyarrow"
            )
            for data in (one.as_py() for table in tables for one in table["held"]):
                self._put(pickle.loads(data))
                if self._left.is_set():
                    return  # which ends the iterator, and the workers with it
            self._put(None)
        except Exception as error:  # raised where it is taken
            self._put(error)

    def _put(self, one: Any) -> None:
        while not self._left.is_set():
            try:
                self._queue.put(one, timeout=_LOOK)
            except queue.Full:
                continue
            return

    def next(self, seconds: float) -> Any:
        """The next value, or None if there is none in time or, `over`, none any more."""
        try:
            one = self._queue.get(timeout=seconds)
        except queue.Empty:
            return None
        if isinstance(one, Exception):
            raise one
        self.over = one is None
        return one

    def close(self) -> None:
        """Take no more. The thread may wait for a worker yet: it ends with the cluster."""
        self._left.set()
        self._thread.join(1)


# The way --------------------------------------------------------------------------------------


def _dataset(work: Work, way: Way, numbered: Sequence[Numbered], gate: Any) -> Any:
    """The way of numbered jobs as a dataset that has not begun."""
    import pyarrow
    import ray.data

    # each row goes on alone: nothing waits for others, and a task that is done again gives the same
    context = ray.data.DataContext.get_current()
    context.target_max_block_size = 1
    # a contact sheet has its rows as they come
    context.execution_options.preserve_order = bool(work.host.plan.output.thumbnail)
    tables = [
        pyarrow.table({"held": [pickle.dumps(group) for group in block]})
        for block in blocks(numbered, way.batch)
    ]
    actors = ray.data.ActorPoolStrategy(size=way.predictors)
    task: dict[str, Any] = {"num_cpus": 1, "memory": way.memory or None}
    read = ray.data.from_arrow(tables).map(partial(ray_work.read, work), **task)
    # without GPUs a network reserves nothing, or readers and writers may find no room
    drawn = read.flat_map(
        ray_work.Predict, fn_constructor_args=(work, gate), compute=actors,
        num_cpus=0, num_gpus=way.gpus or None,
    )  # fmt: skip
    return drawn.map(partial(ray_work.write, work), **task)


def blocks(jobs: Sequence[Numbered], batch: int) -> Iterator[list[list[Numbered]]]:
    """Batches of neighbours, of a clip or of pictures, and how many of them a task reads."""
    spread = -(-len(jobs) // _BLOCKS)
    clips = groupby(jobs, lambda one: None if one[1].frame is None else one[1].source)
    for clip, members in clips:
        numbered = list(members)
        groups = [numbered[at : at + batch] for at in range(0, len(numbered), batch)]
        many = max(1, (_FRAMES if clip else spread) // batch)
        yield from (groups[at : at + many] for at in range(0, len(groups), many))
