"""Texts -> embeddings, by the text encoder of a backbone."""

import gc
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from dmp_cli.networks.loading import as_model_error, quiet, whole

_KEPT = 64  # embeddings of texts that were not known beforehand: 231 kB each in float32


def embed(folder: Path, prompts: Sequence[str], variant: str | None) -> dict[str, Tensor]:
    """Embeddings [1, 77, D] float32 of the prompts; what made them is freed on return."""
    encoder = TextEncoder(folder, variant)
    embeddings = {text: encoder([text]) for text in prompts}
    del encoder
    gc.collect()
    return embeddings


class TextEncoder:
    """The text encoder of a backbone in float32: for texts that are not known beforehand."""

    def __init__(
        self, folder: Path, variant: str | None = None, device: torch.device | str = "cpu"
    ) -> None:
        """From a backbone's folder; ModelError names the folder and what is wrong in it."""
        how = {"variant": variant, "use_safetensors": True, "dtype": torch.float32}
        with as_model_error(folder), quiet():
            self._tokenizer = _tokenizer(folder)
            self._encoder = whole(CLIPTextModel, folder / "text_encoder", how).eval().to(device)
        self._device = device

    @torch.no_grad()
    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embeddings [B, 77, D] float32; what is longer than 77 tokens is cut."""
        tokens = self._tokenizer(
            list(texts), padding="max_length", max_length=self._tokenizer.model_max_length,
            truncation=True, return_tensors="pt",
        )  # fmt: skip
        embeddings: Tensor = self._encoder(tokens.input_ids.to(self._device))[0]
        return embeddings


def _tokenizer(folder: Path) -> Any:
    return CLIPTokenizer.from_pretrained(folder / "tokenizer", local_files_only=True)


class Texts:
    """Embeddings of texts as they come, the latest of them kept. The encoder waits for the first.

    Each text is embedded alone, so that what it gives does not depend on the texts beside it.
    """

    def __init__(
        self,
        folder: Path,
        variant: str | None,
        device: torch.device,
        known: Mapping[str, Tensor] = MappingProxyType({}),
    ) -> None:
        """Of a backbone's folder; what is wrong in it is told when the first text comes.

        `known` are embeddings that stay.
        """
        self._open = folder, variant, device
        self._known = {text: embedding.to(device) for text, embedding in known.items()}
        self._encoder: TextEncoder | None = None
        self._tokenizer: Any = None
        self._kept: OrderedDict[str, Tensor] = OrderedDict()

    def __call__(self, text: str) -> Tensor:
        """The embedding [1, 77, D] of a text, float32."""
        if text in self._known:
            return self._known[text]
        if text not in self._kept:
            self._kept[text] = self._loaded()([text])
        self._kept.move_to_end(text)
        if len(self._kept) > _KEPT:
            self._kept.popitem(last=False)
        return self._kept[text]

    def cuts(self, text: str) -> bool:
        """Whether a text is longer than 77 tokens. Needs the tokenizer alone."""
        if self._tokenizer is None:
            folder = self._open[0]
            with as_model_error(folder), quiet():
                self._tokenizer = _tokenizer(folder)
        tokens = self._tokenizer(text, verbose=False).input_ids
        return len(tokens) > int(self._tokenizer.model_max_length)

    def _loaded(self) -> TextEncoder:
        self._encoder = self._encoder or TextEncoder(*self._open)
        return self._encoder
