"""Enlarging and convolving in one: fewer products for the same picture."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import Conv2d, Module, Parameter

# Which rows of a 3x3 kernel meet the same pixel once each stands twice, of even rows of the result
# and of odd ones: there the pixel above (or itself), here itself (or the one below)
_MEET = (((0,), (1, 2)), ((0, 1), (2,)))


class EnlargedConv(Module):
    """A 3x3 convolution of a picture of twice the size, each pixel repeated (nearest).

    Every pixel of the result is a 2x2 convolution of the small picture, by one of four kernels: 4
    products in place of 9. The kernels are sums of the weights, in float32, and then rounded.
    """

    def __init__(self, conv: Conv2d) -> None:
        """Of a convolution [D, C, 3, 3] with padding 1."""
        super().__init__()
        weight = conv.weight.data.float()
        outputs, inputs = weight.shape[:2]
        biased = conv.bias is not None
        # on meta: no weights are drawn at random that are not wanted
        self.kernels = Conv2d(inputs, 4 * outputs, 2, padding=1, bias=biased, device="meta")
        folded = [_met(weight, rows, columns) for rows in _MEET for columns in _MEET]
        self.kernels.weight = Parameter(torch.cat(folded).to(conv.weight.dtype))
        if conv.bias is not None:
            self.kernels.bias = Parameter(conv.bias.data.repeat(4))

    def forward(self, picture: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, D, 2h, 2w]."""
        four = self.kernels(picture).chunk(4, dim=1)
        high, wide = picture.shape[2:]
        shape = (*four[0].shape[:2], 2 * high, 2 * wide)
        layout = torch.channels_last if four[0].stride(1) == 1 else torch.contiguous_format
        like = {"dtype": four[0].dtype, "device": picture.device}
        result = torch.empty(shape, memory_format=layout, **like)
        for index, part in enumerate(four):
            row, column = divmod(index, 2)
            result[:, :, row::2, column::2] = part[:, :, row:, column:][:, :, :high, :wide]
        return result


def _met(weight: Tensor, rows: Any, columns: Any) -> Tensor:
    """[D, C, 2, 2]: the sums of the weights that meet the same pixel."""
    sums = [weight[:, :, low][..., right].sum((2, 3)) for low in rows for right in columns]
    return torch.stack(sums, dim=-1).view(*weight.shape[:2], 2, 2)


def fold(decoder: Any) -> None:
    """Have the decoder of a VAE enlarge so, wherever it does it by repeating pixels."""
    for block in decoder.up_blocks:
        for index, layer in enumerate(block.upsamplers or ()):
            conv = getattr(layer, "conv", None)
            plain = layer.use_conv and layer.interpolate and layer.norm is None
            if plain and isinstance(conv, Conv2d) and conv.kernel_size == (3, 3):
                block.upsamplers[index] = EnlargedConv(conv)
