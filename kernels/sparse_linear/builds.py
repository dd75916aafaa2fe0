"""What is compiled ahead of time of the linear branch; the sparse one is that of `attention`."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..build import DTYPES, Build, build_of
from ..tile_map import TileMap
from ..tiling import Tiling
from ..triton_common import Launch
from .call import SparseLinearCall, check_call
from .triton_linear import launches


def builds(arch: int | str) -> Iterator[Build]:
    """The builds for a device."""
    for dtype, dim in ((torch.bfloat16, 64), (torch.bfloat16, 128), (torch.float32, 128)):
        for part, launch in launches(_call(dtype, dim), arch).items():
            yield _build(part, launch, DTYPES[dtype], dim)


def _call(dtype: torch.dtype, dim: int) -> SparseLinearCall:
    """A call on tensors without memory, for the flags that the launchers make of it."""
    x = torch.empty((1, 1, 1024, dim), dtype=dtype, device="meta")
    dense = TileMap.dense(Tiling.fixed(1024, 128), Tiling.fixed(1024, 64), "meta")
    return check_call(x, x, x, dense, dense.to_mask(), x, x, None, None, 1e-6)


def _build(part: str, launch: Launch, dtype: str, dim: int) -> Build:
    types = dict.fromkeys(("p_r", "p_w", "p_sums", "p_mass"), "*fp32")
    types |= {"p_marginal": "*u8", "eps": "fp32"}
    if "SHARE" in launch.flags:
        types["p_out"] = "*fp32"
    absent: tuple[str, ...] = ()
    if not launch.flags.get("SCALED", True):
        absent += ("p_r", "p_w")
    if not launch.flags.get("DIVIDED", True):
        absent += ("p_mass",)
    kernel = f"sparse_linear.triton_kernels:{part.split()[0]}_kernel"
    name = f"linear {part} {dtype} D{dim}"
    return build_of(name, kernel, launch, types, pointers=f"*{dtype}", absent=absent)
