"""What is compiled ahead of time of attention to moments."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..build import DTYPES, Build, build_of
from ..tiling import Tiling
from ..triton_common import Launch
from .call import MomentAttentionCall, check_call
from .triton_backend import attend_launch, blocks_launch, expand_launch
from .triton_moments import launch_for, mixing_dtype

_TYPES = {
    **dict.fromkeys(("p_marginal", "p_mask"), "*u8"),
    **dict.fromkeys(("p_list", "p_count"), "*i32"),
    **dict.fromkeys(("p_size", "p_u", "p_lse", "p_variance", "p_spread"), "*fp32"),
    **dict.fromkeys(("scale", "scale_log2"), "fp32"),
}


def builds(arch: int | str) -> Iterator[Build]:
    """The builds for a device."""
    for dtype, dim in (
        (torch.bfloat16, 64),
        (torch.bfloat16, 128),
        (torch.bfloat16, 256),
        (torch.float16, 128),
        (torch.float32, 64),
        (torch.float32, 128),
    ):
        call = _call(dtype, dim)
        name = f"{DTYPES[dtype]} D{dim}"
        for covariance in (False, True):
            launch = launch_for(call.k, 64, False, covariance)
            kind = "covariance" if covariance else "tile"
            yield _build(f"moments {kind} {name}", "moments_kernel", call, launch)
        yield _build(f"moments attend {name}", "attend_kernel", call, attend_launch(call, arch))
        yield _build(f"moments expand {name}", "expand_kernel", call, expand_launch(call, arch))
    call = _call(torch.bfloat16, 128)
    block = attend_launch(call, arch).flags["BLOCK_T"]
    yield _build("moments blocks", "blocks_kernel", call, blocks_launch(block))


def _call(dtype: torch.dtype, dim: int) -> MomentAttentionCall:
    """A call on tensors without memory, for the flags that the launchers make of it."""
    x = torch.empty((1, 1, 1024, dim), dtype=dtype, device="meta")
    marginal = torch.empty((1, 1, 8, 16), dtype=torch.bool, device="meta")
    tilings = Tiling.fixed(1024, 128), Tiling.fixed(1024, 64)
    return check_call(x, x, x, marginal, *tilings, None, None, None)


def _build(name: str, function: str, call: MomentAttentionCall, launch: Launch) -> Build:
    mixing = f"*{DTYPES[mixing_dtype(call.q)]}"
    types = {**_TYPES, **dict.fromkeys(("p_share", "p_mixed", "p_covariance"), mixing)}
    absent: tuple[str, ...] = ()
    if function == "moments_kernel":
        types |= dict.fromkeys(("p_mean_k", "p_mean_v"), "*fp32")
        absent = ("p_mask", "p_covariance")
        if launch.flags["COVARIANCE"]:
            absent = ("p_mask", "p_mean_k", "p_mean_v", "p_variance", "p_spread")
    kernel, pointers = f"moments.triton_kernels:{function}", f"*{DTYPES[call.q.dtype]}"
    return build_of(name, kernel, launch, types, pointers=pointers, absent=absent)
