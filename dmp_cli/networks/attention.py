"""Attention on a CPU that multiplies bf16: the same sums as torch's own, in less time."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor
from torch.nn import functional
from torch.overrides import TorchFunctionMode

from dmp_cli.device import multiplies_bf16

_KEYS = 256  # with fewer of them torch's own is as fast
_SCORES = 1 << 21  # float32 numbers at once: they stay in the cache of a processor
_ONE = Lock()


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """softmax(q k / sqrt(d)) v of [B, heads, N, d] and [B, heads, M, d] twice, in their dtype.

    Products of two matrices for each head and some rows at a time, which oneDNN computes: torch's
    scaled_dot_product_attention has BLAS do it, 1.5 to 2.5 times slower for bf16 on an AMD EPYC.
    Scores and their softmax are float32, as they are there: large ones, rounded to bf16, are wrong.
    """
    trained = torch.is_grad_enabled() and any(one.requires_grad for one in (query, key, value))
    if query.dtype != torch.bfloat16 or trained or key.shape[2] < _KEYS:
        return functional.scaled_dot_product_attention(query, key, value)
    batch, heads, count, wide = query.shape
    result = query.new_empty(batch, count, heads, wide).transpose(1, 2)
    rows = max(_SCORES // key.shape[2], 1)
    scores = query.new_empty(min(rows, count), key.shape[2], dtype=torch.float32)
    with _products_in_bf16():
        for one in range(batch):
            for head in range(heads):
                asked, known = query[one, head].float(), key[one, head].float().T
                for start in range(0, count, rows):
                    part = asked[start : start + rows]
                    some = scores[: len(part)]
                    torch.addmm(some, part, known, beta=0, alpha=wide**-0.5, out=some)
                    shares = torch.softmax(some, -1, out=some).to(value.dtype)
                    result[one, head, start : start + rows] = shares @ value[one, head]
    return result


@contextmanager
def _products_in_bf16() -> Iterator[None]:
    """Within, matrices in float32 are multiplied in bf16 and summed up in float32.

    Of numbers that were bf16 before, nothing is lost by that. It is said to the whole process: what
    other threads multiply in float32 meanwhile is rounded too.
    """
    matmul: Any = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]
    with _ONE:  # two that overlap would put back what the other said
        before, matmul.fp32_precision = matmul.fp32_precision, "bf16"
        try:
            yield
        finally:
            matmul.fp32_precision = before


class _Attends(TorchFunctionMode):
    """Within, torch's attention is ours, where it has no mask or the like."""

    def __torch_function__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        named = kwargs or {}
        ours = function is functional.scaled_dot_product_attention and len(args) == 3
        if ours and not any(isinstance(value, Tensor) or value for value in named.values()):
            return attend(*args)
        return function(*args, **named)


class _Processor:
    """What an Attention of diffusers was computed by, with our attention in it."""

    def __init__(self, given: Callable[..., Any]) -> None:
        self._given = given

    def __call__(
        self,
        attention: Any,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        temb: Tensor | None = None,
    ) -> Any:
        with _Attends():  # names and order are those of diffusers, which looks at them
            return self._given(
                attention, hidden_states, encoder_hidden_states, attention_mask, temb
            )


def replace(network: Any) -> None:
    """Have the attentions of a network be computed so, on a CPU for which it was measured.

    Where AMX multiplies bf16, torch's own has kernels of its own, and is left.
    """
    if multiplies_bf16() != "avx512_bf16":
        return
    for layer in network.modules():
        if isinstance(layer, Attention):
            layer.set_processor(_Processor(layer.processor))
