"""How many tokens a call makes, from configs alone: nothing is run."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ..core.kinds import arguments
from ..pipelines import FamilyAdapter
from ..pipelines.adapter import packed_tokens, patch_tokens
from ..pipelines.grids import patch_grid

_SIZES = ("height", "width", "num_frames")
# Pixels that height and width must divide by in most pipelines.
_DIVISIBLE = 16


@dataclass(frozen=True)
class CallSize:
    """The size of a pipeline call and what it comes to.

    Attributes:
        call: `height`, `width` and `num_frames` in pixels and frames, as far as the pipeline takes
            them.
        grid: frames, rows and columns of image or video tokens.
        unit: pixels that one row or column of tokens stands for.
    """

    call: dict[str, int]
    grid: tuple[int, int, int]
    unit: int

    @property
    def tokens(self) -> int:
        """Image or video tokens."""
        return math.prod(self.grid)

    def reaching(self, tokens: int) -> dict[str, int] | None:
        """The smallest call of about the same shape with that many tokens; None where it is fixed.

        Frames stay as they are.
        """
        if "height" not in self.call or "width" not in self.call:
            return None
        frames, rows, columns = self.grid
        step = math.lcm(self.unit, _DIVISIBLE) // self.unit
        high, wide = rows, columns
        while frames * high * wide < tokens:
            high = (high // step + 1) * step
            wide = math.ceil(high * columns / rows / step) * step
        return {**self.call, "height": high * self.unit, "width": wide * self.unit}


def call_size(
    pipe: Any,
    transformer: nn.Module,
    adapter: FamilyAdapter,
    call: Mapping[str, Any] | None = None,
) -> CallSize | None:
    """The size that a pipeline has where it is not told another one.

    Args:
        pipe: the pipeline, or what has its class name and `vae`.
        transformer: of it.
        adapter: its family.
        call: arguments that it will be called with; they come first.

    Returns:
        None where the configs do not tell.
    """
    config, vae = getattr(transformer, "config", None), getattr(pipe, "vae", None)
    if config is None or vae is None or adapter.tokens is None or adapter.extra_tokens is not None:
        return None
    spatial, temporal = _compression(vae)
    chosen = _chosen(pipe, config, call or {}, spatial)
    if spatial is None or chosen is None or "height" not in chosen or "width" not in chosen:
        return None
    rows, columns = chosen["height"] // spatial, chosen["width"] // spatial
    frames = (chosen.get("num_frames", 1) - 1) // (temporal or 1) + 1
    if adapter.tokens is packed_tokens:
        step = _packing(vae, config)
        grid = (frames, rows // step, columns // step)
    elif adapter.tokens is patch_tokens:
        video = (frames,) if "num_frames" in chosen else ()
        grid = patch_grid(config, (1, 1, *video, rows, columns))
    else:
        return None
    if not all(grid):
        return None
    taken = _parameters(pipe)
    return CallSize(
        {key: value for key, value in chosen.items() if key in taken},
        grid,
        chosen["height"] // grid[1],
    )


def text_of(pipe: Any, call: Mapping[str, Any] | None = None) -> int:
    """Text tokens that a call makes at most, where its arguments or their defaults tell; else 0."""
    value = (call or {}).get("max_sequence_length", _parameters(pipe).get("max_sequence_length"))
    return value if isinstance(value, int) else 0


def _parameters(pipe: Any) -> dict[str, Any]:
    """Arguments of the pipeline's call and their defaults."""
    if callable(pipe):
        return arguments(pipe)
    import diffusers  # it has the name of its class and no more (`hollow_pipeline`)

    return arguments(getattr(diffusers, type(pipe).__name__, type(pipe)))


def _chosen(
    pipe: Any, config: Any, call: Mapping[str, Any], spatial: int | None
) -> dict[str, int] | None:
    """Height, width and frames: what is asked for, else the pipeline's, else the transformer's."""
    defaults = _parameters(pipe)
    chosen = {}
    for key in _SIZES:
        value = call.get(key, defaults.get(key))
        if isinstance(value, int):
            chosen[key] = value
        elif key in defaults and key == "num_frames":
            return None
    side = getattr(config, "sample_size", None)
    if isinstance(side, int) and spatial is not None:
        chosen = {"height": side * spatial, "width": side * spatial, **chosen}
    return chosen


def _compression(vae: Any) -> tuple[int | None, int | None]:
    """Pixels a latent, in space and in time; None where the VAE does not tell."""
    config = getattr(vae, "config", None) or {}

    def first(*names: str) -> int | None:
        # a value of the config is not asked of the module: diffusers warns of that
        values = (config[n] if n in config else getattr(vae, n, None) for n in names)
        return next((v for v in values if isinstance(v, int) and v > 0), None)

    down = config.get("temperal_downsample") or ()
    stages = config.get("block_out_channels") or ()
    spatial = first("scale_factor_spatial", "spatial_compression_ratio")
    temporal = first("scale_factor_temporal", "temporal_compression_ratio")
    if spatial is None:
        spatial = 2 ** len(down) if down else 2 ** (len(stages) - 1) if stages else None
    return spatial, temporal or 2 ** sum(map(bool, down))


def _packing(vae: Any, config: Any) -> int:
    """Latents that one token packs, along a side, by the channels it has."""
    latents = vae.config.get("latent_channels") or vae.config.get("z_dim")
    channels = getattr(config, "out_channels", None) or getattr(config, "in_channels", None)
    if not isinstance(latents, int) or not isinstance(channels, int) or channels < latents:
        return 1
    return math.isqrt(channels // latents)
