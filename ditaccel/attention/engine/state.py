"""What AttentionRuntime remembers of a denoising loop, of a transformer call, and of a layer's."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ...core.denoising.tracker import DenoisingStep
from ...core.ranks import ALL_HEADS, HeadShare
from ...pipelines.grids import Grid
from .masks import MaskBook
from .payoff import LayerState, Payoff
from .planner import Dense


@dataclass(eq=False)
class LoopMemory:
    """What is remembered of one denoising loop.

    Attributes:
        payoff: judges whether maps pay.
        states: of each branch and layer, and of each of the layer's attention calls.
        masks: that were handed over.
        grids: where the tokens lie, by branch and shape of the latents.
        off: why the rest of it is dense; empty where it is not.
        reasons: why calls were dense.
        sparse: whether a call was sparse.
        reached: branches whose attention calls were seen.
    """

    payoff: Payoff
    states: dict[tuple[str, int, int], LayerState] = field(default_factory=dict)
    masks: MaskBook = field(default_factory=MaskBook)
    grids: dict[tuple[str, torch.Size], Grid | None] = field(default_factory=dict)
    off: str = ""
    reasons: set[Dense] = field(default_factory=set)
    sparse: bool = False
    reached: set[str] = field(default_factory=set)

    def state(self, key: tuple[str, int, int], q: Tensor, k: Tensor) -> LayerState:
        """The state of a layer and branch, empty where other tensors come than before."""
        fingerprint = (q.shape, k.shape, q.dtype, q.device)
        known = self.states.get(key)
        if known is None or known.fingerprint != fingerprint:
            known = self.states[key] = LayerState(fingerprint)
        return known


@dataclass
class CallInProgress:
    """The transformer call that runs.

    Attributes:
        step: where it is.
        adapter: of the transformer.
        tokens: image or video tokens, None where the family does not tell.
        grid: their frames, rows and columns, likewise.
        extra: how many of them are of given images, frames or sound; None where that is not known.
        padding: how many fill up the grid's.
        calls: attention calls so far, by layer (Mochi makes one for each item of the batch).
        densities: of the maps so far that know what to leave out.
        promised: of layers that rest before a map of theirs was tried.
        reached: layers that made an attention call.
    """

    step: DenoisingStep
    adapter: Any
    tokens: int | None
    grid: Grid | None = None
    extra: int | None = None
    padding: int = 0
    calls: Counter[int] = field(default_factory=Counter)
    densities: list[Tensor] = field(default_factory=list)
    promised: list[Tensor] = field(default_factory=list)
    reached: set[int] = field(default_factory=set)

    @classmethod
    def of(
        cls,
        step: DenoisingStep,
        adapter: Any,
        config: Any,
        sample: Tensor,
        named: Mapping[str, Any],
        grid: Grid | None,
    ) -> CallInProgress | None:
        """Of the arguments of a call; None where it is not known where the text of this batch is.

        Args:
            step: where the call is.
            adapter: of the transformer.
            config: of the transformer.
            sample: the latents.
            named: all arguments by name.
            grid: of the tokens that are made (`FamilyAdapter.grid`).
        """
        tokens = None if adapter.tokens is None else adapter.tokens(config, sample.shape)
        of_latents, extra, padding = tokens, None, 0
        if tokens is not None and adapter.extra_tokens is not None:
            extra = adapter.extra_tokens(config, named)
            if extra is None:
                return None
            tokens += extra
        if grid is not None and of_latents is not None:
            spare = of_latents + min(extra or 0, 0) - math.prod(grid)
            if not adapter.packed:
                padding = spare
            elif spare >= 0:
                extra = (extra or 0) + spare  # given images among the latents
        return cls(step, adapter, tokens, grid, extra, padding)

    def text(self, length: int) -> tuple[int, int] | None:
        """Where text is in a sequence of so many tokens; None where it is not in it."""
        side, tokens = self.adapter.text, self.tokens
        if side == "none" or tokens is None or tokens >= length:
            return None
        return (0, length - tokens) if side == "front" else (tokens, length)

    def image(self, length: int) -> slice | None:
        """Where the other tokens are, where text is in the sequence too."""
        text = self.text(length)
        return None if text is None else slice(*self._beside(text, length))

    @staticmethod
    def _beside(text: tuple[int, int] | None, length: int) -> tuple[int, int]:
        if text is None:
            return 0, length
        return (text[1], length) if text[0] == 0 else (0, text[0])

    def conditions(self, length: int) -> tuple[int, int] | None:
        """Where tokens of given images, frames or sound are; None where that is unknown."""
        if self.extra is None:
            return None
        start, end = self._beside(self.text(length), length)
        count = max(0, self.extra)  # (less than 0 where text comes in the latents)
        return (start, start + count) if self.adapter.extra_in_front else (end - count, end)

    def filled(self, length: int) -> tuple[int, int] | None:
        """Where padding is, behind the tokens of the latents; None without any."""
        end = self._beside(self.text(length), length)[1]
        return (end - self.padding, end) if self.padding > 0 else None


@dataclass(frozen=True, eq=False)
class LayerCall:
    """One attention call.

    Attributes:
        layer: its number.
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        v: like k.
        mask: as the model gave it.
        scale: of the softmax.
        share: which of the layer's heads these are.
    """

    layer: int
    q: Tensor
    k: Tensor
    v: Tensor
    mask: Tensor | None
    scale: float
    share: HeadShare = ALL_HEADS
