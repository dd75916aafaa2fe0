"""Where a pipeline differs from the one that a config was tuned on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..config import AccelerationConfig, Tuned
from ..core.denoising.schedulers import described
from ..core.denoising.tracker import DenoisingStep
from ..core.transformers import modules_of
from ..errors import ConfigError
from ..io.provenance import fingerprint_of, plain_parts
from ..reports.journal import Journal


def dtype_of(transformer: nn.Module) -> str:
    """Name of the dtype of a transformer's weights."""
    weight = next((p for p in transformer.parameters() if p.is_floating_point()), None)
    return "" if weight is None else str(weight.dtype).removeprefix("torch.")


def weights_of(pipe: Any) -> str:
    """Hash of a pipeline's weights; empty where some are not here (offloaded ones)."""
    weights = (w for part in modules_of(pipe).values() for w in part.state_dict().values())
    away = any(part.is_meta for weight in weights for part in plain_parts(weight))
    return "" if away else fingerprint_of(pipe)


class TunedFor:
    """Warns where a pipeline, or a run, is not what a config was tuned on.

    Args:
        config: in force.
        family: name of the pipeline's family.
        journal: where a watched run is written down.
        warn: called with one line.

    Raises:
        ConfigError: it was tuned on another family, and its steps and maps are not valid here.
    """

    def __init__(
        self,
        config: AccelerationConfig,
        family: str,
        journal: Journal,
        warn: Callable[[str], None],
    ) -> None:
        self._config, self._tuned = config, config.tuned or Tuned()
        self._journal, self._warn = journal, warn
        asked = self._tuned.family
        if asked and asked != family:
            raise ConfigError(
                f"this config was tuned on {asked}, and this is {family}: its steps and maps are "
                "not valid here; tune one for this model"
            )

    def look(self, pipe: Any, transformers: Mapping[str, nn.Module]) -> None:
        """Compare what can be seen before a run."""
        tuned = self._tuned
        scheduler, asked = getattr(pipe, "scheduler", None), self._config.scheduler
        if asked and scheduler is not None and described(scheduler) != asked:
            self._warn(
                f"this config was tuned with {asked}, and the pipeline has {described(scheduler)}: "
                "what it skips may not be what this scheduler can spare; tune it again, or use the "
                "former scheduler"
            )
        if self._config.tuned is None:
            return
        here = dtype_of(next(iter(transformers.values())))
        if tuned.dtype and here and tuned.dtype != here:
            self._differs("weights in", tuned.dtype, here)
        elif tuned.weights and pipe is not None:
            weights = weights_of(pipe)
            if weights and weights != tuned.weights:
                self._warn(
                    f"this config was tuned on other weights of {tuned.model or 'this model'} (a "
                    "LoRA, another checkpoint?): what it skips may not be what these can spare; "
                    "look at the line on drift in the report, or tune it again"
                )

    def begins(self, step: DenoisingStep, sample: torch.Tensor) -> None:
        """Compare what the first call of a generation shows.

        Args:
            step: first one.
            sample: the latents, `(B, …)`.
        """
        watched, tuned = self._journal.watched, self._tuned
        if watched is None:
            return
        watched.latents, watched.steps = tuple(sample.shape[1:]), step.total
        if tuned.latents and tuned.latents != watched.latents:
            shapes = (" x ".join(map(str, shape)) for shape in (tuned.latents, watched.latents))
            self._differs("latents of", *shapes)
        if tuned.steps is not None and step.total not in (None, tuned.steps):
            self._differs("loops of", f"{tuned.steps} steps", f"{step.total}")

    def _differs(self, what: str, there: str, here: str) -> None:
        self._warn(
            f"this config was tuned on {what} {there}, and these are {here}: its speed and quality "
            "were not measured here; tune it again, or look at the line on drift in the report"
        )
