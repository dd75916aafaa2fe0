"""Runs the kernels of the linear branch; nothing here waits for the device.

`torch_linear` says why sums of tiles are mixed by a matrix product. Here heads, and channels of V
where one head is too large, are taken in turn, so that two buffers hold the sums: their memory is
bounded by `BYTES`, whatever the length and the number of heads (16 channels of one head at least).
The backward forms the sums again and puts their gradients in the same two buffers.

Sums are float32. For half precision their products are TF32: the mask and the features are exact in
it, and sums are rounded, not cut, to its 11 bits; bfloat16 outputs have 8, float16 outputs 11.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..attention.triton_backward import row_product
from ..triton_common import SMALL_SHARED, Launch, block_of, shared_strides
from .call import SparseLinearCall

BYTES = 256 << 20
_FEWEST_CHANNELS = 16


def launches(call: SparseLinearCall, arch: int | str) -> dict[str, Launch]:
    """The kernels' flags by name; `expand_t` and `expand` go by what they are used for."""
    features, dim = call.q_features.shape[3], call.attention.q.shape[3]
    half = call.attention.q.element_size() == 2
    # AMD's compiler takes TF32 for some chips only.
    precision = "tf32" if half and not isinstance(arch, str) else "ieee"
    wide, narrow = (64, 32) if half else (32, 16)
    common = {"F": features, "PRECISION": precision}
    by_f, by_c = min(wide, block_of(features)), min(wide, block_of(dim))
    rows = {"q": min(wide, block_of(call.q_tile)), "k": min(wide, block_of(call.k_tile))}
    tiles = {"q": call.q_tile, "k": call.k_tile}
    found: dict[str, Launch] = {}
    for side in ("q", "k"):
        scaled = side == "q"
        own = {**common, "TILE": tiles[side]}
        blocks = {"BLOCK_F": by_f, "BLOCK_C": by_c, "BLOCK_R": min(narrow, rows[side])}
        found[f"sums {side}"] = Launch({**own, **blocks, "SCALED": scaled}, 4, 2)
        blocks = {"BLOCK_F": min(narrow, by_f), "BLOCK_C": by_c, "BLOCK_R": rows[side]}
        found[f"expand {side}"] = Launch({**own, **blocks, "DIVIDED": scaled}, 4, 3)
        blocks = {"BLOCK_F": by_f, "BLOCK_C": min(narrow, by_c), "BLOCK_R": rows[side]}
        for add in (False, True):
            name = f"expand_t {side}{' add' if add else ''}"
            found[name] = Launch({**own, **blocks, "SCALED": scaled, "ADD": add}, 4, 2)
    # As many targets as fit, since each block of them reads all sums again.
    large = precision == "tf32"
    mix = {"PRECISION": precision, "BLOCK_T": 128 if large else wide, "BLOCK_N": 2 * wide}
    mix["BLOCK_S"] = narrow
    group, options = call.attention.group, (8, 2) if arch in SMALL_SHARED or not large else (8, 3)
    found["mix"] = Launch({**mix, "SHARE": group, "MEMBERS": 1, "BACK": False}, *options)
    found["mix back"] = Launch({**mix, "SHARE": 1, "MEMBERS": group, "BACK": True}, *options)
    return found


@dataclass(frozen=True)
class _Part:
    """Key heads `first` to `first + groups` over all batch items, and a slice of channels."""

    first: int
    groups: int
    channel: int
    channels: int


class _Linear:
    """The launches of one call."""

    def __init__(self, call: SparseLinearCall, arch: int | str) -> None:
        self.call = call
        self.by_name = launches(call, arch)
        self.group = call.attention.group
        self.heads = call.attention.q.shape[1]
        tile_map = call.attention.tile_map
        self.tiles = {"q": tile_map.q_tiles, "k": tile_map.k_tiles}
        marginal = call.marginal
        self.marginal = (marginal if marginal.stride(3) == 1 else marginal.contiguous()).view(
            torch.uint8
        )
        self.parts = list(self._split())
        features = call.q_features.shape[3]
        widest = max(p.groups * features * (p.channels + 1) for p in self.parts)
        self.sums = {
            side: torch.empty(widest * count, dtype=torch.float32, device=call.attention.q.device)
            for side, count in (("k", self.tiles["k"]), ("q", self.tiles["q"] * self.group))
        }

    def _split(self) -> Iterator[_Part]:
        batch, kv_heads, _, dim = self.call.attention.v.shape
        held = self.tiles["k"] + self.tiles["q"] * self.group
        of_channel = held * self.call.q_features.shape[3] * 4
        together = max(1, BYTES // (of_channel * (dim + 1)))
        width = dim
        if together == 1:  # one column more holds z
            fits = (BYTES // of_channel - 1) // _FEWEST_CHANNELS
            slices = -(-dim // (max(1, fits) * _FEWEST_CHANNELS))
            width = -(-dim // (slices * _FEWEST_CHANNELS)) * _FEWEST_CHANNELS  # of about one size
        for first in range(0, batch * kv_heads, together):
            groups = min(together, batch * kv_heads - first)
            for channel in range(0, dim, width):
                yield _Part(first, groups, channel, min(width, dim - channel))

    def _grid(self, side: str, part: _Part, blocks: int, rows: bool) -> tuple[int, int]:
        tile = self.call.q_tile if side == "q" else self.call.k_tile
        inside = -(-tile // self.by_name[f"expand {side}"].flags["BLOCK_R"]) if rows else 1
        return self.tiles[side] * inside * blocks, part.groups * self._per_group(side)

    def _per_group(self, side: str) -> int:
        return self.group if side == "q" else 1

    def _where(self, side: str, part: _Part, length: int) -> tuple[int, ...]:
        """heads, first, length, tiles, channel, channels."""
        heads = self.heads if side == "q" else self.heads // self.group
        return (
            heads,
            part.first * self._per_group(side),
            length,
            self.tiles[side],
            part.channel,
            part.channels,
        )

    def sum_tiles(
        self, side: str, part: _Part, x: Tensor, y: Tensor, r: Tensor | None, w: Tensor | None
    ) -> None:
        """S and z of all tiles."""
        from .triton_kernels import sums_kernel

        launch = self.by_name[f"sums {side}"]
        blocks = -(-x.shape[3] // launch.flags["BLOCK_F"])
        blocks *= -(-part.channels // launch.flags["BLOCK_C"])
        sums_kernel[self._grid(side, part, blocks, rows=False)](
            x,
            y,
            r,
            w,
            self.sums[side],
            *x.stride(),
            *y.stride(),
            *self._where(side, part, x.shape[2]),
            **launch.options,
        )

    def mix(self, part: _Part, back: bool = False) -> None:
        """Sums of key tiles to those of query tiles, or back."""
        from .triton_kernels import mix_kernel

        launch = self.by_name["mix back" if back else "mix"]
        source, target = ("q", "k") if back else ("k", "q")
        width = self.call.q_features.shape[3] * (part.channels + 1)
        blocks = -(-self.tiles[target] // launch.flags["BLOCK_T"])
        blocks *= -(-width // launch.flags["BLOCK_N"])
        mix_kernel[(blocks, part.groups * self._per_group(target))](
            self.marginal,
            self.sums[source],
            self.sums[target],
            *shared_strides(self.marginal, 2),
            self.marginal.stride(2),
            self.heads,
            part.first * self.group,
            self.tiles[target],
            self.tiles[source],
            width,
            **launch.options,
        )

    def expand(self, side: str, part: _Part, x: Tensor, y: Tensor, mass: Tensor | None) -> None:
        """Rows of X times the sums of their tile, into Y."""
        from .triton_kernels import expand_kernel

        launch = self.by_name[f"expand {side}"]
        blocks = -(-part.channels // launch.flags["BLOCK_C"])
        expand_kernel[self._grid(side, part, blocks, rows=True)](
            x,
            self.sums[side],
            y,
            mass,
            *x.stride(),
            *y.stride(),
            *self._where(side, part, x.shape[2]),
            self.call.eps,
            **launch.options,
        )

    def expand_t(
        self, side: str, part: _Part, y: Tensor, x: Tensor, r: Tensor | None, w: Tensor | None
    ) -> None:
        """Rows of Y times the transposed sums of their tile, into X."""
        from .triton_kernels import expand_t_kernel

        launch = self.by_name[f"expand_t {side}{' add' if part.channel else ''}"]
        blocks = -(-x.shape[3] // launch.flags["BLOCK_F"])
        expand_t_kernel[self._grid(side, part, blocks, rows=True)](
            y,
            self.sums[side],
            r,
            w,
            x,
            *y.stride(),
            *x.stride(),
            *self._where(side, part, x.shape[2]),
            **launch.options,
        )


def forward(call: SparseLinearCall, arch: int | str) -> tuple[Tensor, Tensor]:
    """The linear branch as q is, and its mass, float32 `(B, H, Lq)`."""
    own = call.attention
    linear = torch.empty_like(own.q)
    mass = torch.empty(own.q.shape[:3], dtype=torch.float32, device=own.q.device)
    run = _Linear(call, arch)
    for part in run.parts:
        run.sum_tiles("k", part, call.k_features, own.v, None, None)
        run.mix(part)
        run.expand("q", part, call.q_features, linear, mass)
    return linear, mass


def backward(
    call: SparseLinearCall,
    linear: Tensor,
    mass: Tensor,
    d_linear: Tensor,
    d_mass: Tensor,
    arch: int | str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of q_features and k_features, and float32 of v; `torch_linear.backward` says how.

    The gradient of v is contiguous.
    """
    v = call.attention.v
    r = (mass + call.eps).reciprocal_()
    w = d_mass - row_product(d_linear, linear) * r
    run = _Linear(call, arch)
    # Features whose gradient is a sum over slices of channels add up in float32.
    dtype = torch.float32 if run.parts[0].channels < v.shape[3] else v.dtype
    d_q, d_k = (torch.empty_like(x, dtype=dtype) for x in (call.q_features, call.k_features))
    d_v = torch.empty(v.shape, dtype=torch.float32, device=v.device)
    for part in run.parts:
        run.sum_tiles("k", part, call.k_features, v, None, None)
        run.mix(part)
        run.expand_t("q", part, d_linear, d_q, r, w)
        run.sum_tiles("q", part, call.q_features, d_linear, r, w)
        run.mix(part, back=True)
        run.expand_t("k", part, v, d_k, None, None)
        run.expand("k", part, call.k_features, d_v, None)
    return d_q.to(v.dtype), d_k.to(v.dtype), d_v
