"""Device and dtype: one decision, with its reason."""

import pytest
import torch

from dmp_cli import device, plan
from dmp_cli.errors import ResourceError, UsageError


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """A machine without accelerators, whatever this one has."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    return monkeypatch


def with_cuda(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "is_available", lambda: True)
    machine.setattr(torch.cuda, "get_device_name", lambda: "a card")
    machine.setattr(torch.cuda, "device_count", lambda: 2)


def test_the_cpu_takes_fp32(machine: pytest.MonkeyPatch) -> None:
    found = device.choose()
    assert (str(found.device), found.dtype_name) == ("cpu", "fp32")
    assert found.reason == "no accelerator found"


def test_cuda_takes_fp16(machine: pytest.MonkeyPatch) -> None:
    with_cuda(machine)
    found = device.choose()
    assert (found.device.type, found.dtype_name, found.reason) == ("cuda", "fp16", "found a card")
    assert str(device.choose("cuda:1").device) == "cuda:1"
    assert device.choose("cpu").dtype_name == "fp32"
    assert device.choose("cuda", "bf16").dtype_name == "bf16"


def test_mps_takes_fp32(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.backends.mps, "is_available", lambda: True)
    assert (device.choose().device.type, device.choose().dtype_name) == ("mps", "fp32")


@pytest.mark.parametrize("name", ["cuda", "cuda:0", "mps"])
def test_a_device_that_is_not_there_is_refused(machine: pytest.MonkeyPatch, name: str) -> None:
    with pytest.raises(ResourceError, match=f"--device {name}"):
        device.choose(name)


def test_a_card_that_is_not_there_is_refused(machine: pytest.MonkeyPatch) -> None:
    with_cuda(machine)
    with pytest.raises(ResourceError, match="there are 2 CUDA devices"):
        device.choose("cuda:2")
    with pytest.raises(ResourceError, match="--devices cuda:2: ") as raised:
        device.several(("cuda:0", "cuda:2"))
    assert raised.value.hint == "count from 0, or take --devices all"


@pytest.mark.parametrize(
    ("where", "dtype"),
    [("gpu", "auto"), ("cuda:", "auto"), ("cpu:0", "auto"), ("cpu", "fp8"), ("cpu", "fp16")],
)
def test_names_that_make_no_sense_are_refused(
    machine: pytest.MonkeyPatch, where: str, dtype: str
) -> None:
    with pytest.raises(UsageError):
        device.choose(where, dtype)


def test_only_cuda_has_memory_of_its_own(machine: pytest.MonkeyPatch) -> None:
    machine.setattr(torch.cuda, "mem_get_info", lambda where: (3, 7))
    assert device.memory(torch.device("cpu")) is None
    assert device.memory(torch.device("cuda")) == (3, 7)


def test_the_plan_names_the_dtypes_that_there_are() -> None:
    assert ("auto", *device.DTYPES) == plan.DTYPES


@pytest.mark.gpu
def test_fp16_on_cuda_is_near_fp32() -> None:
    from dmp_cli.backbone import Backbone
    from tests.conftest import PARITY

    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        half = Backbone.load(PARITY / "sd-tiny", device.choose("cuda")).predict(z.cuda(), 401).cpu()
        exact = Backbone.load(PARITY / "sd-tiny", device.choose("cpu")).predict(z, 401)
    assert float((half - exact).norm() / exact.norm()) < 0.01


@pytest.mark.parametrize(
    ("kind", "dtype", "size", "by", "expected"),
    [
        ("cpu", "auto", 1 << 30, "avx512_bf16", "bf16"),
        ("cpu", "auto", 1 << 30, "amx_bf16", "bf16"),
        ("cpu", "auto", 1 << 30, "avx512_f", "fp32"),  # it would be slower
        ("cpu", "auto", 1 << 20, "avx512_bf16", "fp32"),  # a small network gains nothing
        ("cpu", "fp32", 1 << 30, "avx512_bf16", "fp32"),
        ("cuda", "auto", 1 << 30, "avx512_bf16", "fp16"),
    ],
)
def test_a_large_network_on_a_cpu_that_multiplies_bf16_is_computed_so(
    machine: pytest.MonkeyPatch, kind: str, dtype: str, size: int, by: str, expected: str
) -> None:
    with_cuda(machine)
    machine.setattr(torch.cpu, "get_capabilities", lambda: {by: True}, raising=False)
    found = device.for_network(device.choose(kind, dtype), dtype, size)
    assert found.dtype_name == expected
    assert (by in found.reason) is (expected == "bf16")
    assert device.multiplies_bf16() == (None if by == "avx512_f" else by)
