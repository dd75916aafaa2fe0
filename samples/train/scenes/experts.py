"""Two experts out of scenes-wan, as Wan 2.2 has them (see the module `experts` of the shapes)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from experts import noise_levels
from loop import averaged
from torch import Tensor, nn

from scenes.pools import Clips
from scenes.wan import SHIFT, build_wan, wan_loss


def build_expert() -> nn.ModuleDict:
    """Transformer and frozen text encoder, in the layout of the averaged weights."""
    model = build_wan()
    model["text_encoder"].requires_grad_(False)
    return nn.ModuleDict({part: model[part] for part in ("transformer", "text_encoder")})


def from_wan(expert: nn.ModuleDict) -> None:
    """Fill an expert with the averaged weights of the run "scenes-wan"."""
    whole = averaged("scenes-wan", build_wan())
    for part, module in expert.items():
        module.load_state_dict(whole[part].state_dict())


def curriculum(step: int) -> tuple[int, int]:
    """Batch size and latent frames at a step: parts of clips, and whole ones now and then."""
    return (1, 24) if step % 12 == 11 else (4, 6)


def expert_loss(
    clips: Clips, *, high: bool, plan: Callable[[int], tuple[int, int]] = curriculum
) -> Callable:
    """The loss of scenes-wan on the noise levels of one expert.

    Args:
        clips: pool of clips.
        high: train on much noise.
        plan: batch size and latent frames (more than one) of a step.
    """

    def levels(n: int, generator: torch.Generator, length: int) -> Tensor:
        return noise_levels(n, generator, high=high, shift=SHIFT)

    return wan_loss(clips, lambda: clips, plan, levels)
