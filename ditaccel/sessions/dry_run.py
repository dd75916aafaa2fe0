"""Dry runs that show how an unknown transformer works (`pipelines/auto.py` concludes from them)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.engine.processor import ProcessorSeam, Split
from ..attention.engine.runtime import find_attention
from ..core.calls import as_tensor
from ..core.patching import PatchLedger
from ..errors import UnsupportedError
from ..pipelines import FamilyAdapter
from ..pipelines.auto import NotRecognisedError, Watch, text_side, token_count

WAY_OUT = (
    "; caching methods with target='output' (as the presets have it) need nothing inside it, for "
    "all others describe it: accelerate(..., adapter=FamilyAdapter(...))"
)


class DryRun:
    """Learns what the adapter of one unknown transformer must say.

    Args:
        transformer: the module.
        adapter: from `auto.recognise`.
    """

    def __init__(self, transformer: nn.Module, adapter: FamilyAdapter) -> None:
        self._transformer = transformer
        self._adapter = adapter

    def learn(
        self, run: Callable[..., Any], sample: Any, attention: bool
    ) -> tuple[FamilyAdapter, str]:
        """Run the transformer once, for attention methods three times.

        Args:
            run: takes the latents and runs the transformer, dense, with its other arguments.
            sample: the latents of the call, a tensor or a list.
            attention: whether the place of text tokens is needed.

        Returns:
            The adapter, and one line that says what it now says.

        Raises:
            UnsupportedError: something could not be found; with what.
        """
        kind = type(self._transformer).__name__
        try:
            learnt = self._blocks(run, sample)
            if attention:
                learnt = self._text(run, sample, learnt)
        except NotRecognisedError as error:
            raise UnsupportedError(
                f"{kind} is of no known family, and a dry run did not show how its blocks work: "
                f"{error}{WAY_OUT}"
            ) from None
        return learnt, _in_words(learnt, attention)

    def _blocks(self, run: Callable[..., Any], sample: Any) -> FamilyAdapter:
        watch = Watch(self._transformer, self._adapter)
        ledger = PatchLedger(owner=self)
        try:
            for module, around in watch.modules():
                ledger.intercept(module, around)
            run(sample)
        finally:
            ledger.undo()
        return watch.learnt()

    def _text(self, run: Callable[..., Any], sample: Any, learnt: FamilyAdapter) -> FamilyAdapter:
        """Other latents move the rows of the first layer's queries that are not text."""
        modules = find_attention(self._transformer, learnt.attention)
        seen: list[Tensor] = []

        def attend(
            layer: int,
            dense: Callable[[], Tensor],
            q: Tensor,
            k: Tensor,
            v: Tensor,
            mask: Tensor | None,
            scale: float | None,
            split: Split | None = None,
        ) -> Tensor:
            if layer == 0 and not noted:
                noted.append(True)
                seen.append(q.detach().clone())
            return dense()

        ledger = PatchLedger(owner=self)
        try:
            ProcessorSeam(modules, attend).install(ledger)
            for latents in (sample, _others(sample)):
                noted: list[bool] = []
                run(latents)
        finally:
            ledger.undo()
        if len(seen) < 2 or seen[0].shape != seen[1].shape:
            raise NotRecognisedError("which attention module is the first to run")
        moved = (seen[0] != seen[1]).any(-1).any(1).any(0)
        text, tokens = text_side(moved)
        if text == "none":
            return learnt
        shape = tuple(as_tensor(sample).shape)
        rule = token_count(getattr(self._transformer, "config", None), shape, tokens)
        if rule is None:
            raise NotRecognisedError(f"how {tokens} tokens come of latents {shape}")
        return replace(learnt, text=text, tokens=rule)


def _others(sample: Any) -> Any:
    """Other latents of the same size, without drawing from the user's random numbers."""
    if isinstance(sample, Tensor):
        noise = torch.randn(sample.shape, generator=torch.Generator().manual_seed(0))
        return sample + noise.to(sample)
    return [_others(part) for part in sample]


def _in_words(adapter: FamilyAdapter, attention: bool) -> str:
    parts = []
    for block in adapter.blocks:
        streams = [block.hidden if r == "hidden" else str(block.encoder) for r in block.returns]
        parts.append(f"{block.container} return {', '.join(streams)}")
    line = f"blocks: {'; then '.join(parts)}"
    if attention:
        paths = dict.fromkeys(f"{a.container}.*.{a.module}" for a in adapter.attention)
        place = {"none": "not in the sequence", "front": "in front", "back": "behind"}
        line += f"; self-attention: {', '.join(paths)}; text tokens: {place[adapter.text]}"
    return line
