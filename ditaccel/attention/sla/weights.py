"""What fine-tuning for SLA writes: its projections, beside changes of the model's weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...io.adapter import Adapter

FORMAT = "ditaccel-sla-2"
# In which shares of tiles are percentages.
_OLD_FORMAT = "ditaccel-sla-1"
_SHARES = ("critical", "negligible")
# What files hold that were written before these options were there.
_BEFORE = {"linear": "marginal", "projection": "per_head"}


@dataclass(eq=False)
class SLAWeights(Adapter):
    """Trained parts of one or several transformers.

    Attributes:
        projections: component -> a weight `(H, D, D)` and a bias `(H, D)` for each attention layer;
            H is 1 where all heads share them. Others: see `Adapter`; `options` are those of
            `defaults.SHARED`.
    """

    formats: ClassVar[tuple[str, ...]] = (FORMAT, _OLD_FORMAT)

    projections: dict[str, list[tuple[Tensor, Tensor]]] = field(default_factory=dict)

    def projection(
        self, component: str, layer: int, device: torch.device
    ) -> tuple[Tensor, Tensor] | None:
        """Weight and bias of one layer, on the device where its attention runs."""
        layers = self.projections.get(component, [])
        if layer >= len(layers):
            return None
        weight, bias = layers[layer]
        if weight.device != device:
            layers[layer] = weight.to(device), bias.to(device)
        return layers[layer]

    def parts(self, component: str) -> dict[str, Tensor]:
        """See `Adapter`."""
        found: dict[str, Tensor] = {}
        for i, (weight, bias) in enumerate(self.projections.get(component, ())):
            found |= {f"projection.{i}.weight": weight, f"projection.{i}.bias": bias}
        return found

    def take_parts(self, component: str, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter`."""
        stem = "projection."
        layers = sum(n.startswith(stem) and n.endswith(".weight") for n in tensors)
        self.projections[component] = [
            (tensors[f"{stem}{i}.weight"], tensors[f"{stem}{i}.bias"]) for i in range(layers)
        ]

    @classmethod
    def read_options(cls, options: dict[str, Any], written: str) -> dict[str, Any]:
        """See `Adapter`."""
        options = {**_BEFORE, **options}
        if written == _OLD_FORMAT:
            options |= {name: options[name] / 100 for name in _SHARES if name in options}
        return options

    @classmethod
    def load(cls, path: str | Path, method: str = "SLA") -> SLAWeights:
        """See `Adapter`."""
        return super().load(path, method)
