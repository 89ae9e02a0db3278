"""What `dmp bench` measures, as plain values. Seconds are of one image unless said otherwise."""

from collections.abc import Mapping
from dataclasses import dataclass

READING: tuple[str, ...] = ("read",)
NETWORK = ("encode", "unet", "decode", "copy")
WRITING = ("resize", "look", "write")
# stage -> what it is, in the order in which an image goes through them
STAGES = {
    "read": "read, fit to the network",
    "encode": "encode (VAE)",
    "unet": "UNet",
    "decode": "decode (VAE)",
    "copy": "LoRA, copies, checks",
    "resize": "maps at full size",
    "look": "colours, quantising",
    "write": "encode files, write",
}
TINY = "decode (tiny decoder)"  # in place of the VAE's


@dataclass(frozen=True)
class Machine:
    """What it runs on."""

    processor: str
    cores: int  # that this process may use
    threads: int  # of torch
    torch: str
    device: str
    device_name: str  # "" for the processor
    bf16: str | None  # what the processor multiplies it with
    idle_gpu: bool  # there is an NVIDIA driver, but this torch is built without CUDA


@dataclass(frozen=True)
class Run:
    """What is measured."""

    model: str
    tasks: tuple[str, ...]
    settings: Mapping[str, str]  # by task
    calls: Mapping[str, int]  # of the UNet a map, by task
    dtype: str
    device_asked: str
    dtype_asked: str
    batch: int
    readers: int
    writers: int
    formats: tuple[str, ...]
    low_memory: bool = False
    tiny_decoder: bool | None = None  # whether it draws; None: the model has none

    def title(self, stage: str) -> str:
        """What a stage of STAGES is in this run."""
        return TINY if stage == "decode" and self.tiny_decoder else STAGES[stage]


@dataclass(frozen=True)
class Start:
    """Seconds before all goes as it will."""

    imports: float
    load: float
    first_image: float


@dataclass(frozen=True)
class Stages:
    """The first pass: one stage after the other, the device waited for after each."""

    images: int
    seconds: Mapping[str, float]  # by name of STAGES

    def of(self, names: tuple[str, ...]) -> float:
        """Several stages together."""
        return sum(self.seconds[name] for name in names)

    @property
    def largest(self) -> str:
        """The stage of the network that takes longest."""
        return max(NETWORK, key=lambda name: self.seconds[name])


@dataclass(frozen=True)
class Pipeline:
    """The second pass: a run as any other."""

    images: int
    maps: int
    seconds: float  # of all images
    p50: float
    p95: float
    idle: float | None  # share of the time that the device waited; None: it drew only once
    cpu: float  # of all cores

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds


@dataclass(frozen=True)
class Memory:
    """Bytes at most; None where that is not known."""

    host: int | None
    device: int | None


@dataclass(frozen=True)
class Figures:
    """All of it."""

    machine: Machine
    run: Run
    start: Start
    stages: Stages
    pipeline: Pipeline
    memory: Memory
