"""One item (or several of one shape) through the pipeline: arguments in, frames and facts out."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from .. import api
from .. import config as configs
from ..core.kinds import decoded, denoised, gives_pictures
from ..io.frames import to_uint8
from .inputs import MAX_PIXELS, load_inputs
from .manifest import Item
from .overlap import Seam, Turn


@dataclass(frozen=True)
class Made:
    """What one call gave for one item.

    Attributes:
        frames: uint8 (F, H, W, 3), None where only latents are wanted.
        latents: (C, …) as the decoder got them, None where they are not wanted.
        turn: how the call went.
    """

    frames: np.ndarray | None
    latents: torch.Tensor | None
    turn: Turn


def shape_key(item: Item) -> str:
    """Items with equal keys may share one call."""
    return json.dumps([item.call, item.config, item.negative_prompt is None], sort_keys=True)


def can_share(item: Item) -> bool:
    """Whether an item may share a call: input files come one a call."""
    return not item.inputs


class Maker:
    """Calls one pipeline for items.

    Args:
        pipe: the pipeline, not accelerated.
        seam: around it.
        kinds: files that are wanted.
        call: arguments of every call that an item's own stand before.
        max_input: most pixels of an input; see `load_inputs`.
    """

    def __init__(
        self,
        pipe: Any,
        seam: Seam,
        kinds: Sequence[str],
        call: Mapping[str, Any] | None = None,
        max_input: int = MAX_PIXELS,
    ) -> None:
        self.pipe, self.seam, self._call = pipe, seam, dict(call or {})
        self.max_input = max_input
        self.keep_latents = "latents" in kinds
        self.decode = any(kind != "latents" for kind in kinds)
        self.decodes = gives_pictures(pipe)
        self._config: dict[str, Any] | None = None
        self._before: tuple[int, int, float] = (0, 0, 0.0)

    def set_config(self, config: dict[str, Any] | None) -> None:
        """Accelerate the pipeline as an item wants it. The caller holds the baton."""
        if config == self._config:
            return
        if self._config is not None:
            api.restore(self.pipe)
            self._config = None
        if config is not None:
            api.accelerate(self.pipe, configs.from_dict(config))
            self._config = config

    def close(self) -> None:
        """Give the pipeline back as it came."""
        self.set_config(None)
        self.seam.close()

    def _mark(self) -> None:
        if self._config is not None:
            report = api.report(self.pipe)
            self._before = (report.total_calls, report.forecasts, report.share_sum)

    def _stats(self) -> dict[str, Any]:
        """What was skipped since `_mark`."""
        if self._config is None:
            return {}
        report = api.report(self.pipe)
        calls, forecasts, share = (
            after - before
            for after, before in zip(
                (report.total_calls, report.forecasts, report.share_sum), self._before, strict=True
            )
        )
        last = report.last_generation()
        steps: dict[str, dict[int, str]] = {}
        for call in last.calls:
            mark = "#" if call.action == "compute" else "."
            steps.setdefault(f"{call.transformer} {call.branch}".strip(), {})[call.step] = mark
        reasons = Counter(f"{call.action}: {call.cause.value}" for call in last.calls)
        return {
            "calls": calls,
            "forecast": forecasts,
            "computed_share": share / calls if calls else 1.0,
            "steps": {
                name: "".join(marks.get(i, " ") for i in range(max(marks) + 1))
                for name, marks in steps.items()
            },
            "reasons": dict(reasons.most_common(5)),
        }

    def arguments(self, items: Sequence[Item]) -> dict[str, Any]:
        """Keyword arguments of the call for items of one shape."""
        first = items[0]
        inputs = load_inputs(first.inputs, self.max_input)
        made: dict[str, Any] = {**self._call, **first.call, **inputs}
        made |= decoded(self.pipe) if self.decodes else denoised(self.pipe)
        # On the CPU on every device, one per item: the noise must depend on the seed alone.
        generators = [torch.Generator("cpu").manual_seed(item.seed) for item in items]
        made["generator"] = generators if len(items) > 1 else generators[0]
        if first.class_label is not None:
            made["class_labels"] = [item.class_label for item in items]
            return made
        many = len(items) > 1
        made["prompt"] = [item.prompt for item in items] if many else first.prompt
        if first.negative_prompt is not None:
            texts = [item.negative_prompt for item in items]
            made["negative_prompt"] = texts if many else texts[0]
        return made

    def make(self, items: Sequence[Item], alone: bool = False) -> list[Made]:
        """Make items in one call. The caller holds the baton; it is free when this returns.

        Args:
            items: of one shape and config.
            alone: nothing else may decode meanwhile.

        Raises:
            Exception: whatever the pipeline raises.
        """
        try:
            arguments = self.arguments(items)
            self.set_config(items[0].config)
            self._mark()
            # For what a pipeline might draw without its generator.
            torch.manual_seed(items[0].seed)
            if alone:
                self.seam.settle()
        except BaseException:
            self.seam.baton.release()
            raise
        value, turn = self.seam.call(
            arguments,
            decode=self.decode,
            keep_latents=self.keep_latents,
            alone=alone,
            seen=self._stats,
        )
        latents = turn.latents
        if not self.decodes:
            latents, value = torch.as_tensor(value), None
        made = []
        for index in range(len(items)):
            frames = None
            if value is not None:
                frames = to_uint8(_one(value, index))
            # A decoder that got another batch (packed, or frame by frame) keeps it whole.
            own = latents
            if latents is not None and len(latents) == len(items):
                own = latents[index]
            made.append(Made(frames, own, turn))
        return made


def _one(value: Any, index: int) -> Any:
    """One item's part of the pipeline's frames (B, F, H, W, 3) or images (B, H, W, 3)."""
    array = value if isinstance(value, (np.ndarray, torch.Tensor)) else np.stack(list(value))
    return array[index : index + 1]


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on any device."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(
        words in text for words in ("out of memory", "can't allocate memory", "alloc_cpu")
    )


def release_memory() -> None:
    """Give cached device memory back."""
    import gc

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
