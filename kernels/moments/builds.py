"""What is compiled ahead of time of attention to moments."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any

import torch

from ..tiling import Tiling
from ..triton_launch import Launch
from .call import MomentCall, check_call
from .triton_backend import attend_launch, expand_launch
from .triton_moments import launch_for, mixing_dtype

_Parts = tuple[str, str, dict[str, str], dict[str, Any], dict[str, int]]
_TYPES = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}
_INTEGERS = {"p_marginal": "*u8", "p_mask": "*u8", "p_list": "*i32", "p_count": "*i32"}
_SINGLE = ("p_size", "p_u", "p_lse", "p_variance", "p_spread")


def builds(arch: int | str) -> Iterator[_Parts]:
    """Name, kernel, signature, flags and options of each build; see `..aot.Build`."""
    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float16, 128),
        (torch.float32, 64),
        (torch.float32, 128),
    ):
        call = _call(dtype, dim)
        name = f"{_TYPES[dtype]} D{dim}"
        for covariance in (False, True):
            launch = launch_for(call.k, 64, False, covariance, arch)
            kind = "covariance" if covariance else "tile"
            yield _build(f"moments {kind} {name}", "moments_kernel", call, launch)
        yield _build(f"moments attend {name}", "attend_kernel", call, attend_launch(call, arch))
        yield _build(f"moments expand {name}", "expand_kernel", call, expand_launch(call, arch))
    call = _call(torch.bfloat16, 128)
    block = {"BLOCK_T": attend_launch(call, arch).flags["BLOCK_T"]}
    yield _build("moments blocks", "blocks_kernel", call, Launch(block, 1, 1))


def _call(dtype: torch.dtype, dim: int) -> MomentCall:
    """A call on tensors without memory, for the flags that the launchers make of it."""
    x = torch.empty((1, 1, 1024, dim), dtype=dtype, device="meta")
    marginal = torch.empty((1, 1, 8, 16), dtype=torch.bool, device="meta")
    tilings = Tiling.fixed(1024, 128), Tiling.fixed(1024, 64)
    return check_call(x, x, x, marginal, *tilings, None, None, None)


def _build(name: str, function: str, call: MomentCall, launch: Launch) -> _Parts:
    own = f"*{_TYPES[call.q.dtype]}"
    types = {**_INTEGERS, **dict.fromkeys(_SINGLE, "*fp32"), "scale": "fp32", "scale_log2": "fp32"}
    held = ("p_share", "p_mixed", "p_covariance")
    types |= dict.fromkeys(held, f"*{_TYPES[mixing_dtype(call.q)]}")
    absent: tuple[str, ...] = ()
    if function == "moments_kernel":
        types |= dict.fromkeys(("p_mean_k", "p_mean_v"), "*fp32")
        absent = ("p_mask", "p_covariance")
        if launch.flags["COVARIANCE"]:
            absent = ("p_mask", "p_mean_k", "p_mean_v", "p_variance", "p_spread")
    module = f"{__package__}.triton_kernels"
    signature = {}
    for argument in getattr(importlib.import_module(module), function).arg_names:
        if argument in absent:
            signature[argument] = "constexpr"
        elif argument not in launch.flags:
            signature[argument] = types.get(argument, own if argument.startswith("p_") else "i32")
    kernel = f"moments.triton_kernels:{function}"
    options = {"num_warps": launch.warps, "num_stages": launch.stages}
    return name, kernel, signature, launch.flags, options
