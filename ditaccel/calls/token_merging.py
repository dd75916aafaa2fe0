"""Token merging (ToMe, arXiv 2303.17604; VidToMe, 2312.10656): similar tokens become one."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, ClassVar, Literal

from torch import Tensor

from ..attention.engine.options import Ranges, Schedule, along, check_ranges
from ..attention.engine.planner import LayerContext
from ..attention.engine.processor import ProcessorSeam, Split
from ..attention.engine.runtime import find_attention
from ..attention.engine.state import CallInProgress
from ..caching.engine.blocks import Block, find_blocks
from ..caching.engine.policy import CachePolicy
from ..config import CallConfig, Example, method, require
from ..core.calls import argument_names, as_tensor, has_conditions
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import OwnHook, PatchLedger, is_compiled
from ..errors import ConfigError, UnsupportedError
from ..pipelines.grids import Grid
from .engine.merging import Merge, drawn, matched
from .engine.method import CallLog, CallMethod, Site, TransformerCall

_PICTURE, _VIDEO = (1, 2, 2), (4, 1, 1)
_LAYERS = 4096  # more than any transformer has: seeds of its layers do not repeat


@method("token_merging", paper="2303.17604")
@dataclass(frozen=True, kw_only=True)
class TokenMergingConfig(CallConfig):
    """Similar image or video tokens merge in front of each layer, and part again behind it.

    The grid is cut into cells, and one token of each is drawn as a target at every step and layer.
    The other tokens are compared with the targets by their cosine, the most similar ones are left
    out of the layer, and get what the layer adds to their target. Text, given images and padding
    never merge. There is one matching for the whole batch, so that guidance branches in one call
    stay aligned.

    Where the family's blocks can be given fewer tokens, whole blocks run on those that are left, by
    default; their own input stays under what their target gets (as VidToMe does). Elsewhere
    attention alone does. A token that is left keeps its place in rotary embeddings.

    It is meant for long sequences of smooth content, and loses detail everywhere alike. On the
    samples it loses clearly to fewer steps at equal time, and on sequences as short as those of
    shapes-flux it saves no time (eval/README.md, "Call methods"): compare before use.

    Args:
        ratio: share of the image or video tokens that merge into others, at least 0 (exact) and at
            most what a cell leaves: 0.75 for the cells below. Larger is faster and less exact.
            Published: 0.5 (ToMe), 0.675 (VidToMe, 0.9 of three quarters).
        cell: frames, rows and columns of a cell; None for `(1, 2, 2)` in pictures (ToMe) and
            `(4, 1, 1)` in videos (VidToMe: one frame of four).
        around: `blocks`, `attention` alone, or `auto`: blocks where the family allows it.
        reduce: what a target goes into the layer as: `replace`, itself, or `mean`, the mean of
            those that it stands for (in attention, of their values).
        layers: ranges `[[first, end], …]` of layers (blocks, or attention layers) in which tokens
            merge; empty for all.
        schedule: ratio along the loop, `[[share, ratio], …]`, in straight lines between these
            points; `[[0, 0], [0.3, 0.5]]` merges more and more in the first third. Empty for
            `ratio` at every step.
        match_steps: steps that one matching serves, >= 1.
        min_tokens: shorter sequences are left alone.
        seed: of the draws; they never touch the pipeline's own.
    """

    excludes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"attention": "a tile map would not find its tokens in a merged sequence"}
    )

    ratio: float = 0.4
    cell: tuple[int, ...] | None = None
    around: Literal["auto", "blocks", "attention"] = "auto"
    reduce: Literal["replace", "mean"] = "replace"
    layers: Ranges = ()
    schedule: Schedule = ()
    match_steps: int = 1
    min_tokens: int = 256
    seed: int = 0

    def __post_init__(self) -> None:
        cell = _PICTURE if self.cell is None else self.cell
        require(
            len(cell) == 3 and all(size >= 1 for size in cell) and math.prod(cell) > 1,
            f"cell is {list(cell)}; give frames, rows and columns of two or more tokens in all, "
            "such as [1, 2, 2]",
        )
        most = 1 - 1 / math.prod(cell)
        shares = [share for share, _ in self.schedule]
        require(
            all(0 <= share <= 1 for share in shares) and shares == sorted(set(shares)),
            f"schedule has the shares {shares} of the loop; give them ascending, from 0 to 1",
        )
        for name, ratio in (("ratio", self.ratio), *(("schedule", r) for _, r in self.schedule)):
            require(
                0.0 <= ratio <= most,
                f"{name} is {ratio:g}; it must be 0 (exact) to {most:g}, as one token of each cell "
                f"of {list(cell)} stays",
            )
        check_ranges("layers", self.layers)
        for name, least in (("match_steps", 1), ("min_tokens", 0), ("seed", 0)):
            value = getattr(self, name)
            require(value >= least, f"{name} is {value}; it must be {least} or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (
            Example(cls(ratio=0.0, min_tokens=0), cls(min_tokens=0)),
            Example(
                cls(ratio=0.0, min_tokens=0, around="attention"),
                cls(min_tokens=0, around="attention", reduce="mean"),
                "attention",
            ),
        )

    def ratio_at(self, step: DenoisingStep) -> float:
        """The ratio of a step."""
        if not self.schedule:
            return self.ratio
        return along(self.schedule, step.index / step.total if step.total else 0.0)

    def call_method(self) -> TokenMerging:
        """What carries the calls out."""
        return TokenMerging(self)


@dataclass
class _Now:
    """The call that runs: where its tokens are, and what was merged of them so far."""

    place: CallInProgress
    ratio: float
    grids: dict[int, tuple[int, Grid]]
    total: int = 0
    left: int = 0


class TokenMerging(CallMethod):
    """Merges tokens in front of blocks or attention layers, and unmerges them behind."""

    _now: _Now | None

    def __init__(self, config: TokenMergingConfig) -> None:
        super().__init__()
        self._config = config
        self._inputs: dict[int, tuple[Tensor, Merge]] = {}  # of blocks that are running

    def check_cache(self, policy: CachePolicy, name: str) -> None:
        """See `CallMethod`: modules inside merged blocks see other tokens at every step."""
        if policy.granularity == "module" and self._config.around != "attention":
            raise ConfigError(
                f"{name} forecasts modules inside blocks, whose tokens token_merging changes from "
                "step to step; give token_merging:around=attention, or granularity='last_block'"
            )

    def attach(self, site: Site, ledger: PatchLedger) -> None:
        """See `CallMethod`."""
        self.site, self.log = site, CallLog(site.name, self._config.method)
        around = self._config.around
        if around != "attention":
            blocks = find_blocks(site.transformer, site.adapter.blocks)
            why = _unfit(site, blocks)
            if not why:
                for index, block in enumerate(blocks):
                    self._hook(index, block, ledger)
                self._check_layers(len(blocks))
                return
            if around == "blocks":
                raise UnsupportedError(f"{why}; give around='attention'")
        modules = find_attention(
            site.transformer, site.adapter.attention, site.adapter.no_attention_because
        )
        self._seam = ProcessorSeam(modules, self._attend)
        self._seam.install(ledger)
        self._check_layers(len(modules))

    def _check_layers(self, count: int) -> None:
        """Refuse ranges of layers that the transformer does not have."""
        for first, end in self._config.layers:
            require(
                first < count,
                f"layers has the range {first} to {end}, but {self.site.name} has {count} layers "
                f"in which tokens can merge, 0 to {count - 1}",
            )

    def carry_out(self, call: TransformerCall) -> Any:
        """See `CallMethod`."""
        ratio = self._config.ratio_at(call.step)
        place = self._place(call) if ratio > 0 else None
        if place is None:
            self.log.add(False)
            return call.dense()
        self._now = now = _Now(place, ratio, {})
        try:
            return call.dense()
        finally:
            self._inputs.clear()
            self.log.add(now.left < now.total, now.left / now.total if now.total else 1.0)
            self.changed |= now.left < now.total

    def nothing_changed(self) -> str:
        """See `CallMethod`."""
        if self._config.ratio == 0 and not any(ratio for _, ratio in self._config.schedule):
            return ""
        return (
            "no tokens were merged in a whole generation (sequences shorter than min_tokens="
            f"{self._config.min_tokens}, or as many text as image tokens?); lower min_tokens, use "
            "another size, or leave token_merging out"
        )

    def _place(self, call: TransformerCall) -> CallInProgress | None:
        """Where the tokens of a call are; None where that is not known."""
        site, named = self.site, call.named
        config = getattr(site.transformer, "config", None)
        sample, place = named[site.adapter.sample], None
        if not has_conditions(sample):
            sample = as_tensor(sample)
            key = (call.step.branch, "grid", sample.shape)
            if key not in self._states:
                self._states[key] = site.adapter.grid(config, tuple(sample.shape), named)
            place = CallInProgress.of(
                call.step, site.adapter, config, sample, named, self._states[key]
            )
        if place is None:
            site.warn(
                f"{site.name}: where text and image are in the sequences of this call is not "
                "known; no tokens are merged"
            )
        return place

    def _range(self, now: _Now, length: int) -> tuple[int, Grid] | None:
        """First token and grid of what may merge in a sequence; a line where no grid is known."""
        if length not in now.grids:
            place = now.place
            text, given = place.text(length), place.conditions(length)
            context = LayerContext(
                place.step, 0, 1, length, text, None, place.grid, given, place.filled(length)
            )
            found = context.grid_tokens
            if found is not None and place.grid is not None:
                now.grids[length] = found[0], place.grid
            else:
                image = place.image(length) or slice(0, length)
                start, end = image.start, image.stop
                if given is not None and given[0] < given[1]:
                    start = given[1] if given[0] == start else start
                    end = given[0] if given[1] == end else end
                now.grids[length] = start, (1, 1, end - start)
        start, grid = now.grids[length]
        return None if math.prod(grid) < max(self._config.min_tokens, 2) else (start, grid)

    def _matched(self, layer: int, length: int, metric: Callable[[], Tensor]) -> Merge | None:
        """The merge of a layer, None where its tokens stay apart.

        Args:
            layer: its number.
            length: tokens of its sequence.
            metric: gives what tokens are compared by, `(B, length, C)`.
        """
        now, config = self._now, self._config
        if now is None:
            return None
        inside = not config.layers or any(a <= layer < b for a, b in config.layers)
        found = self._range(now, length)
        now.total += length
        now.left += length
        if found is None or not inside:
            return None
        start, grid = found
        step, tokens = now.place.step, math.prod(grid)
        key = (step.branch, layer, length)
        known = self._states.get(key)
        if known is None or step.index - known[0] >= config.match_steps or known[1] != now.ratio:
            groups = drawn(grid, self._cell(grid), self._seed(step, layer))
            merge = matched(metric()[:, start : start + tokens], groups, now.ratio)
            known = step.index, now.ratio, merge.shifted(start, length - start - tokens)
            if config.match_steps > 1:
                self._states[key] = known
        merge = known[2]
        now.left -= length - len(merge.kept)
        return None if len(merge.kept) == length else merge

    def _cell(self, grid: Grid) -> tuple[int, ...]:
        cell = self._config.cell or (_PICTURE if grid[0] == 1 else _VIDEO)
        # on a line, as where no grid is known, a cell is so many neighbours
        return (1, 1, math.prod(cell)) if grid[:2] == (1, 1) else cell

    def _seed(self, step: DenoisingStep, layer: int) -> int:
        return self._config.seed + _LAYERS * step.index + layer

    # -- around attention --

    def _attend(
        self,
        layer: int,
        dense: Callable[[], Tensor],
        q: Tensor,
        k: Tensor,
        v: Tensor,
        mask: Any,
        scale: float | None,
        split: Split | None = None,
    ) -> Tensor:
        """See `processor.Attend`; tokens are compared by values, which no rotation changes."""
        if split is not None or (mask is not None and not isinstance(mask, Tensor)):
            return dense()
        length = q.shape[2]
        merge = self._matched(layer, length, lambda: v.transpose(1, 2).flatten(2))
        if merge is None:
            return dense()
        if mask is not None:
            for axis in (-1, -2):
                if mask.ndim >= -axis and mask.shape[axis] == length:
                    mask = mask.index_select(axis, merge.kept)
        mean = self._config.reduce == "mean"
        q, k, v = merge.merged(q, 2), merge.merged(k, 2), merge.merged(v, 2, mean)
        return merge.unmerged(self._seam.layers[layer].dense(q, k, v, mask, scale), 2)

    # -- around blocks --

    def _hook(self, index: int, block: Block, ledger: PatchLedger) -> None:
        """Put hooks around a block, inside what a cache has put in front of it."""
        axes, names = block.contract.token_axes or {}, argument_names(block.module)

        def enter(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            if self._now is None:
                return None
            hidden, text = block.hidden_in(args, kwargs), self._text_beside(block, args, kwargs)
            if text == hidden.shape[1]:
                return None  # an argument does not show whether its rows are of text or image
            merge = self._matched(index, hidden.shape[1], lambda: hidden)
            if merge is None:
                return None
            self._inputs[index] = hidden, merge
            front = text if self.site.adapter.text == "front" else 0
            joint = merge.shifted(front, text - front)
            mean = self._config.reduce == "mean"
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            changed = {
                n: _rows_left(given[n], a, merge, joint) for n, a in axes.items() if n in given
            }
            changed[block.contract.hidden] = merge.merged(hidden, 1, mean)
            return (), {**given, **changed}

        def leave(module: Any, args: Any, kwargs: dict[str, Any], output: Any) -> Any:
            found = self._inputs.pop(index, None)
            if found is None:
                return None
            hidden, merge = found
            given = kwargs[block.contract.hidden]
            single = isinstance(output, Tensor)
            place = 0 if single else block.contract.returns.index("hidden")
            made = output if single else output[place]
            whole = (hidden + merge.unmerged(made - given, 1)).to(made.dtype)
            whole = whole.index_copy(1, merge.kept, made)
            if single:
                return whole
            return (*output[:place], whole, *output[place + 1 :])

        before = block.module.register_forward_pre_hook(OwnHook(enter), with_kwargs=True)
        behind = block.module.register_forward_hook(OwnHook(leave), with_kwargs=True)
        ledger.on_undo(before.remove)
        ledger.on_undo(behind.remove)

    @staticmethod
    def _text_beside(block: Block, args: tuple[Any, ...], kwargs: dict[str, Any]) -> int:
        """Text tokens that come apart from the others, and have rows of their own."""
        if block.contract.encoder is None:
            return 0
        text = block.argument(block.contract.encoder, args, kwargs)
        return text.shape[1] if isinstance(text, Tensor) else 0


def _unfit(site: Site, blocks: list[Block]) -> str:
    """Why blocks cannot be given fewer tokens; empty where they can."""
    kind = type(site.transformer).__name__
    for block in blocks:
        contract = block.contract
        if contract.token_axes is None or contract.second_stream or contract.regrouped:
            return f"blocks of {kind} cannot be given fewer tokens than the grid has"
        if is_compiled(block.module):
            return f"blocks of {kind} are compiled, and tokens are merged in front of them"
    return ""


def _rows_left(value: Any, axis: int, merge: Merge, joint: Merge) -> Any:
    """The rows of the tokens that are left, of an argument with a row for each token.

    Args:
        value: tensor, or a tuple of these; others are given back.
        axis: of the tokens.
        merge: of the image or video tokens.
        joint: of these and the text.
    """
    if isinstance(value, (tuple, list)):
        return type(value)(_rows_left(each, axis, merge, joint) for each in value)
    if not isinstance(value, Tensor) or value.ndim <= axis:
        return value
    for each in (merge, joint):
        if value.shape[axis] == len(each.stands):
            return value.index_select(axis, each.kept)
    return value
