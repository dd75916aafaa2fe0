"""What is compiled ahead of time of sparse-linear attention and of the gradients it needs."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from ..attention.triton_backend import Blocks
from ..attention.triton_backward import key_flags_for, query_flags_for
from ..tile_map import TileMap
from ..tiling import Tiling
from ..triton_launch import block_of
from .call import SparseLinearCall, check_call
from .triton_linear import launches

_Parts = tuple[str, str, dict[str, str], dict[str, Any], dict[str, int]]
_TYPES = {torch.bfloat16: "bf16", torch.float32: "fp32"}
_SINGLE = ("p_sum", "p_delta", "p_more", "p_r", "p_w", "p_sums", "p_mass")
_FLOATS = ("scale", "scale_log2", "eps")


def builds(arch: int | str) -> Iterator[_Parts]:
    """Name, kernel, signature, flags and options of each build; see `..aot.Build`."""
    for dtype, dim, kind in (
        (torch.bfloat16, 64, "plain"),
        (torch.bfloat16, 128, "plain"),
        (torch.bfloat16, 128, "ragged"),
        (torch.float32, 64, "plain"),
        (torch.float32, 128, "plain"),
    ):
        call = _call(dtype, dim, kind)
        name = f"{_TYPES[dtype]} D{dim} {kind}"
        yield _attention(f"attention dq {name}", call, *query_flags_for(call.attention, arch))
        yield _attention(f"attention dkv {name}", call, *key_flags_for(call.attention, arch, True))
        if kind != "plain" or (dtype == torch.float32 and dim < 128):
            continue
        for part, launch in launches(call, arch).items():
            options = {"num_warps": launch.warps, "num_stages": launch.stages}
            kernel = f"sparse_linear.triton_kernels:{part.split()[0]}_kernel"
            signature = _signature(kernel, launch.flags, _TYPES[dtype])
            yield f"linear {part} {_TYPES[dtype]} D{dim}", kernel, signature, launch.flags, options
    sizes = {"D": 128, "BLOCK_D": block_of(128), "BLOCK_L": 32}
    kernel = "attention.triton_backward_kernel:row_product_kernel"
    signature = {**_signature(kernel, sizes, "bf16"), "p_out": "*fp32"}
    yield "row_product bf16 D128", kernel, signature, sizes, {"num_warps": 4}


def _call(dtype: torch.dtype, dim: int, kind: str) -> SparseLinearCall:
    """A call on tensors without memory, for the flags that the launchers make of it."""
    length = 1000 if kind == "ragged" else 1024
    x = torch.empty((1, 1, length, dim), dtype=dtype, device="meta")
    dense = TileMap.dense(Tiling.fixed(length, 128), Tiling.fixed(length, 64), "meta")
    mask = torch.empty((1, length), dtype=torch.bool, device="meta") if kind == "ragged" else None
    return check_call(x, x, x, dense, dense.to_mask(), x, x, None, mask, 1e-6)


def _attention(name: str, call: SparseLinearCall, flags: dict[str, Any], blocks: Blocks) -> _Parts:
    function = "query_gradient_kernel" if "EVEN_K" in flags else "key_gradient_kernel"
    kernel = f"attention.triton_backward_kernel:{function}"
    absent = ("p_mask",) if flags["MASK"] == 0 else ()
    signature = _signature(kernel, flags, _TYPES[call.attention.q.dtype], absent)
    return name, kernel, signature, flags, {"num_warps": blocks.warps, "num_stages": blocks.stages}


def _signature(
    kernel: str, flags: dict[str, Any], dtype: str, absent: tuple[str, ...] = ()
) -> dict[str, str]:
    """Argument name to type, without the flags."""
    import importlib

    module, function = kernel.split(":")
    package = __package__.rpartition(".")[0]
    names = getattr(importlib.import_module(f"{package}.{module}"), function).arg_names
    types = dict.fromkeys(_SINGLE, "*fp32")
    types |= dict.fromkeys(("p_index", "p_count"), "*i32")
    types |= dict.fromkeys(("p_mask", "p_marginal"), "*u8")
    types |= dict.fromkeys(_FLOATS, "fp32")
    if "SHARE" in flags:
        types["p_out"] = "*fp32"
    absent += ("p_r", "p_w") if not flags.get("SCALED", True) else ()
    absent += ("p_mass",) if not flags.get("DIVIDED", True) else ()
    signature = {}
    for name in names:
        if name in flags:
            continue
        if name in absent:
            signature[name] = "constexpr"
        else:
            signature[name] = types.get(name, f"*{dtype}" if name.startswith("p_") else "i32")
    return signature
