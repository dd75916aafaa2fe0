"""The student of sparse-linear attention: projections of its linear branch, and weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ...attention.engine.runtime import find_attention
from ...attention.sla import SLAConfig
from ...attention.sla.defaults import TRAINED
from ...attention.sla.planner import SLAPlanner
from ...attention.sla.weights import SLAWeights
from ...config import require
from ...errors import UnsupportedError
from ..attention_student import AttentionStudent
from ..student import student


@student(SLAConfig, default=True)
class SLAStudent(AttentionStudent):
    """Learns a projection for each layer and, if asked for, the model's weights.

    `train` is `projection` (a small file, and no second copy of any weight), `attention` or `all`
    (projections, and the weights of the attention modules or all of them). In the mode
    `training_free` there is no linear branch: weights alone learn, and attention costs what it
    costs without them.
    """

    trains: ClassVar[tuple[str, ...]] = ("projection", "attention", "all")
    weights: SLAWeights

    @classmethod
    def choices(cls, config: SLAConfig) -> tuple[str, ...]:
        """See `Student`."""
        return cls.trains[1:] if config.mode == "training_free" else cls.trains

    def new_weights(self, config: SLAConfig) -> SLAWeights:
        """See `AttentionStudent`."""
        mode = config.mode or "combined"
        known = (*TRAINED, "training_free")
        require(
            mode in known,
            f"mode={mode!r} has nothing to train; choose one of: {', '.join(known)}",
        )
        self._options: Any = replace(config, mode=mode)
        options = SLAPlanner(self._options, None).options
        return SLAWeights(options, source="the weights in training")

    def planner(self, config: Any) -> SLAPlanner:
        """See `AttentionStudent`."""
        return SLAPlanner(config, self.weights)

    def add_parts(self, name: str, transformer: nn.Module) -> None:
        """A projection for each attention layer, 0 at first; none without a linear branch."""
        if self.weights.options["mode"] not in TRAINED:
            return
        layers = []
        for each in find_attention(transformer, self.subject.family.attention):
            heads = getattr(each.module, "heads", None)
            weight = getattr(getattr(each.module, "to_q", None), "weight", None)
            if not heads or weight is None:
                raise UnsupportedError(
                    f"{name}: {each.name} has no `heads` and `to_q`, from which its head dimension "
                    "would be read; fine-tuning does not know this family"
                )
            dim = weight.shape[0] // heads
            count = 1 if self.weights.options["projection"] == "shared" else heads
            made = [
                torch.zeros(count, *shape, device=weight.device) for shape in ((dim, dim), (dim,))
            ]
            layers.append((made[0].requires_grad_(), made[1].requires_grad_()))
        self.weights.projections[name] = layers

    def parts(self) -> list[Tensor]:
        """Tensors of the projections."""
        return [t for layers in self.weights.projections.values() for pair in layers for t in pair]
