"""Condition cache (EasyControl, arXiv 2503.07027; OminiControl2, 2503.08280), with a gate."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.engine.processor import ProcessorSeam, Split
from ..attention.engine.runtime import find_attention
from ..attention.engine.state import CallInProgress
from ..caching.engine.policy import CachePolicy
from ..config import CallConfig, Example, method, require
from ..core.denoising.tracker import DenoisingStep
from ..core.outputs import tensors_of, with_tensors
from ..core.patching import PatchLedger
from ..errors import ConfigError, UnsupportedError
from .engine.method import CallLog, CallMethod, Site, TransformerCall

_LONGER = (
    "its calls came with given images that are longer on a side than the picture that is made, on "
    "which the positions of the text depend, so condition_cache keeps nothing; give images of the "
    "picture's size or smaller, or leave condition_cache out"
)
_NO_IMAGES = (
    "its calls came without tokens of given images behind those that are made, so condition_cache "
    "has nothing to keep; use it with an editing pipeline (FluxKontextPipeline, "
    "QwenImageEditPipeline)"
)


@method("condition_cache", paper="2503.07027")
@dataclass(frozen=True, kw_only=True)
class ConditionCacheConfig(CallConfig):
    """Keys and values of given images are computed every Nth step, and kept in between.

    In between, the transformer is called without the tokens of given (reference) images: no
    projection, attention query or MLP of theirs is computed, and each attention layer appends the
    keys and values that they had (after norm and rotary embedding) to those of text and picture.

    EasyControl and OminiControl2 train conditions that see nothing but themselves, so that one
    computation serves a whole generation exactly. In the pipelines of diffusers that hand reference
    tokens over at every step, these attend to all others, and change with the step: keeping them is
    an approximation, and a gate watches it. It measures how much keys and values moved between
    the last two steps that computed them, and expects them to move on at that pace. (Flux2 Klein KV
    and Qwen-Image 2.1 have a cache of their own in diffusers, and need none.)

    Use it for editing with large reference images, at many steps; a picture without given images
    gains nothing. Not calibrated on a trained checkpoint: compare it with dense first. It takes the
    memory of two tensors per attention layer and guidance branch, each with all given tokens (and
    for a moment twice that, while the gate compares).

    Args:
        interval: most steps that one computation serves, N >= 1; 1 is exact.
        threshold: expected relative change of the kept keys and values up to which they serve, at
            least 0 (exact).
        warmup: first steps that compute them, >= 2, as the gate compares two.
    """

    excludes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {"attention": "a tile map would not find the kept tokens"}
    )

    interval: int = 5
    threshold: float = 0.3
    warmup: int = 2

    def __post_init__(self) -> None:
        require(self.interval >= 1, f"interval is {self.interval}; it must be 1 (exact) or more")
        require(
            0.0 <= self.threshold < float("inf"),
            f"threshold is {self.threshold}; it must be 0 (exact) or a positive number",
        )
        require(
            self.warmup >= 2,
            f"warmup is {self.warmup}; the gate compares two computed steps, so give 2 or more",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(interval=1), cls(interval=3, threshold=1e9)),)

    def call_method(self) -> ConditionCache:
        """What carries the calls out."""
        return ConditionCache(self)


@dataclass
class _Kept:
    """What is kept of the given images of a branch.

    Attributes:
        like: shape, dtype and device of the latents, given images included.
        index: step that computed it.
        pairs: attention layer -> keys and values `(B, H, given, D)`.
        rest: what the transformer returned for the given images; pipelines throw it away.
        pace: relative change of keys and values per step; None until two steps are known.
    """

    like: Any
    index: int
    pairs: dict[int, tuple[Tensor, Tensor]] = field(default_factory=dict)
    rest: Tensor | None = None
    pace: float | None = None


@dataclass(frozen=True)
class _Now:
    """The call that runs: what it keeps or re-uses, and where given images are in it."""

    kept: _Kept
    reuses: bool
    place: CallInProgress


class ConditionCache(CallMethod):
    """Computes given images now and then, and calls the transformer without them in between."""

    _now: _Now | None

    def __init__(self, config: ConditionCacheConfig) -> None:
        super().__init__()
        self._config = config
        self._exact = config.interval == 1 or config.threshold == 0
        self._longer = False  # whether given images of this generation could not be left out

    def check_cache(self, policy: CachePolicy, name: str) -> None:
        """See `CallMethod`: between the blocks there are not as many tokens at every step."""
        if not policy.outside:
            raise ConfigError(
                f"{name} works between the blocks, where condition_cache leaves tokens out at some "
                "steps; give a caching method with target='output' (as the presets have it)"
            )

    def attach(self, site: Site, ledger: PatchLedger) -> None:
        """See `CallMethod`."""
        self.site, self.log = site, CallLog(site.name, self._config.method)
        if site.adapter.without_given is None:
            raise UnsupportedError(
                "condition_cache does not apply: this family is given no reference images as "
                "tokens behind those that it makes, or none that could be left out"
            )
        modules = find_attention(
            site.transformer, site.adapter.attention, site.adapter.no_attention_because
        )
        self._seam = ProcessorSeam(modules, self._attend)
        self._seam.install(ledger)

    def nothing_changed(self) -> str:
        """See `CallMethod`."""
        if self._exact:
            return ""
        if self._longer:
            return _LONGER
        if not self._states:
            return _NO_IMAGES
        return (
            "given images were computed at every step of a generation (they change faster than "
            f"threshold={self._config.threshold:g} allows); raise it, use more steps, or leave "
            "condition_cache out"
        )

    def begin_generation(self, step: DenoisingStep) -> None:
        """See `CallMethod`."""
        self._longer = False

    def carry_out(self, call: TransformerCall) -> Any:
        """See `CallMethod`."""
        if self._exact:
            self.log.add(False)
            return call.dense()
        adapter, step, named = self.site.adapter, call.step, call.named
        sample, config = named[adapter.sample], getattr(self.site.transformer, "config", None)
        grid = adapter.grid(config, tuple(sample.shape), named)
        place = CallInProgress.of(step, adapter, config, sample, named, grid)
        given = 0 if place is None or grid is None else place.extra or 0
        own, like = sample.shape[1] - given, (sample.shape, sample.dtype, sample.device)
        assert adapter.without_given is not None
        changes = adapter.without_given(named, own) if given > 0 else None
        if place is None or changes is None:
            self._longer |= given > 0
            self.log.add(False)
            return call.dense()
        former = self._states.get(step.branch)
        if former is not None and former.like != like:
            former = None
        if former is not None and self._serves(former, step):
            self._now = _Now(former, True, place)
            output = self._without_given(call, changes, own, former)
            self.log.add(True, own / sample.shape[1])
            self.changed = True
            return output
        kept = _Kept(like, step.index)
        self._now = _Now(kept, False, place)
        output = call.dense()
        kept.rest = tensors_of(output)[0][:, own:].detach()
        if former is not None:
            kept.pace = _change(former, kept) / max(step.index - former.index, 1)
        self._states[step.branch] = kept
        self.log.add(False)
        return output

    def _serves(self, kept: _Kept, step: DenoisingStep) -> bool:
        """Whether what is kept serves one more step."""
        age = step.index - kept.index
        if step.index < self._config.warmup or age >= self._config.interval or kept.pace is None:
            return False
        return kept.pace * age < self._config.threshold

    def _without_given(
        self, call: TransformerCall, changes: dict[str, Any], own: int, kept: _Kept
    ) -> Any:
        """The transformer's output of the first `own` tokens, in the form of all of them."""
        assert kept.rest is not None
        sample = self.site.adapter.sample
        output = call.changed({**changes, sample: call.named[sample][:, :own]})
        made = tensors_of(output)[0]
        return with_tensors(output, [torch.cat([made, kept.rest.to(made.dtype)], 1)])

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
        """See `attention.engine.processor.Attend`."""
        now = self._now
        if now is None:
            return dense()
        if not now.reuses:
            found = now.place.conditions(k.shape[2])
            if found is not None:
                start, end = found
                now.kept.pairs[layer] = k[:, :, start:end].clone(), v[:, :, start:end].clone()
            return dense()
        keys, values = now.kept.pairs[layer]
        k, v = torch.cat([k, keys], 2), torch.cat([v, values], 2)
        if isinstance(mask, Tensor):
            takes_part = True if mask.dtype == torch.bool else 0.0
            mask = F.pad(mask, (0, keys.shape[2]), value=takes_part)
        return self._seam.layers[layer].dense(q, k, v, mask, scale)


def _change(former: _Kept, newer: _Kept) -> float:
    """Relative change of all keys and values; waits for the device."""
    change: Tensor | float = 0.0
    size: Tensor | float = 0.0
    for layer, pair in newer.pairs.items():
        for new, old in zip(pair, former.pairs[layer], strict=True):
            change = change + (new.float() - old.float()).square().sum()
            size = size + new.float().square().sum()
    return float((change / size) ** 0.5) if newer.pairs else math.inf
