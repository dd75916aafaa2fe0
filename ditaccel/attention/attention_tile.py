"""Attention tile (Efficient-vDiT): frames attend to themselves and to a few reference frames.

Of F latent frames, k are references: they attend to all frames, and all attend to them. Every other
frame attends to itself besides, which keeps 1 - ((F - k)^2 - (F - k)) / F^2 of the attention
matrix. Paper: arXiv 2502.06155, whose authors distil the model for it and choose k per layer by a
loss; they do not say where references lie: here they are evenly spaced, from frame 0 on (ours).
Untrained, use many references and dense first steps. A tile that holds tokens of two frames is kept
if either rule keeps it. In a picture, rows stand for frames; small frames are joined (ours).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from ..config import Example, method, require
from .engine.boxes import cover
from .engine.frames import Frames
from .engine.options import FixedTileOptions, Swept, TrainedOptions
from .engine.planner import LayerContext, State
from .engine.tile_planner import MaskPlanner


@method("attention_tile", paper="2502.06155")
@dataclass(frozen=True, kw_only=True)
class AttentionTileConfig(TrainedOptions, FixedTileOptions):
    """Each frame attends to itself and to a few reference frames, which attend to all.

    Options that all methods share are described in `TileOptions`. The map follows from the size
    alone: it is made once per generation, and is the same for all heads.

    Args:
        references: reference frames: a number, or a share of the frames below 1, rounded up. More
            is slower and nearer to dense. Published, after training: of 8 frames 1, 2 or 3; of 24
            frames 3 or 12.
        per_layer: reference frames of each layer, in the order in which layers run; replaces
            `references` where given. The authors choose them by the loss that each layer bears.
        weights: safetensors file that `ditaccel.finetune` wrote for these reference frames: changes
            of the model's own weights, which are in place during sparse steps only.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {"references": 0.25, "dense_steps": 0, "min_tokens": 0, "break_even": 1.0}
    }
    trained_for: ClassVar[tuple[str, ...]] = ("references", "per_layer", "rest")
    swept: ClassVar[Swept] = Swept("references", (0.01, 0.1, 0.2, 0.3, 0.4))

    references: int | float = 0.25
    per_layer: tuple[int | float, ...] = ()

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            not (self.schedule and self.per_layer),
            "schedule and per_layer both replace references; give one of them",
        )
        for value in (self.references, *self.per_layer):
            require(
                value >= 0 and (isinstance(value, int) or value < 1),
                f"references is {value}; give a number of frames, or a share of them below 1",
            )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        small = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(small, references=9999), replace(small, references=0)),)

    def planner(self) -> AttentionTilePlanner:
        """What the seam carries out."""
        return AttentionTilePlanner(self)


class AttentionTilePlanner(MaskPlanner):
    """Makes one map per size and number of references."""

    serves = None

    def mask(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> Tensor:
        """See `MaskPlanner`."""
        config = self.config
        references = self.density_setting(context) if config.schedule else config.references
        if config.per_layer:
            require(
                len(config.per_layer) == context.layers,
                f"per_layer has {len(config.per_layer)} entries, but the transformer has "
                f"{context.layers} attention layers; give one per layer",
            )
            references = config.per_layer[context.layer]
        tilings = self.tilings(q, k, context)
        frames = Frames.of(context, max(config.q_tile, config.k_tile))
        return cover(frame_map(frames.count, references), frames.labels(context.length), *tilings)


def frame_map(frames: int, references: int | float) -> Tensor:
    """Which frame attends to which, bool `(frames, frames)`.

    Args:
        frames: their number.
        references: a number of them, or a share below 1, rounded up.
    """
    count = references if isinstance(references, int) else -int(-references * frames // 1)
    count = min(count, frames)
    chosen = torch.zeros(frames, dtype=torch.bool)
    chosen[torch.arange(count) * frames // max(count, 1)] = True
    return torch.eye(frames, dtype=torch.bool) | chosen | chosen[:, None]
