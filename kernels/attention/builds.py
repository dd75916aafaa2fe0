"""What is compiled ahead of time of tile attention, of its gradients, and of merging."""

from __future__ import annotations

from collections.abc import Iterator

import torch

from ..build import DTYPES, Build, build_of
from ..tile_map import TileMap
from ..tiling import Tiling
from .call import AttentionCall, Marking, Precision, TileCentroids, check_call
from .merge import merge_launch
from .triton_backend import launch_for, quantise_launch
from .triton_backward import key_launch, query_launch, row_product_launch

_KINDS = (
    (torch.bfloat16, 64, "plain"),
    (torch.bfloat16, 64, "mark"),
    (torch.bfloat16, 128, "plain"),
    (torch.bfloat16, 128, "mark"),
    (torch.bfloat16, 128, "skip_now"),
    (torch.bfloat16, 128, "variable"),
    (torch.bfloat16, 128, "ragged"),
    (torch.bfloat16, 128, "variable mark"),
    (torch.bfloat16, 64, "variable centroids"),
    (torch.bfloat16, 128, "variable centroids"),
    (torch.bfloat16, 256, "plain"),
    (torch.bfloat16, 256, "mark"),
    (torch.float32, 64, "mark"),
    (torch.float32, 128, "plain"),
    (torch.float32, 128, "mark"),
    (torch.bfloat16, 64, "int8"),
    (torch.bfloat16, 64, "int8 mark"),
    (torch.bfloat16, 64, "int8 variable centroids"),
    (torch.bfloat16, 128, "int8"),
    (torch.bfloat16, 128, "int8 mark"),
    (torch.bfloat16, 128, "int8 skip_now"),
    (torch.bfloat16, 128, "int8 ragged"),
    (torch.bfloat16, 128, "int8 variable"),
    (torch.bfloat16, 128, "int8 variable mark"),
    (torch.bfloat16, 128, "int8 variable centroids"),
    (torch.bfloat16, 256, "int8"),
    (torch.float32, 64, "int8 mark"),
    (torch.float32, 128, "int8"),
)
_GRADIENTS = (
    (torch.bfloat16, 64, "plain"),
    (torch.bfloat16, 128, "plain"),
    (torch.bfloat16, 128, "ragged"),
    (torch.float32, 64, "plain"),
    (torch.float32, 128, "plain"),
)


def builds(arch: int | str) -> Iterator[Build]:
    """The builds for a device."""
    for dtype, dim, kind in _KINDS:
        yield _forward(f"attention {DTYPES[dtype]} D{dim} {kind}", _call(dtype, dim, kind), arch)
    for dtype, dim, kind in _GRADIENTS:
        yield from _backward(f"{DTYPES[dtype]} D{dim} {kind}", _call(dtype, dim, kind), arch)
    for subtract, kind in ((False, "queries"), (True, "keys")):
        types = dict.fromkeys(("p_mean", "p_scale", "p_constant"), "*fp32") | {"p_out": "*i8"}
        launch = quantise_launch(128, 1, subtract)
        path = "triton_tokens:quantise_kernel"
        yield build_of(f"int8 {kind} bf16 D128", path, launch, types, pointers="*bf16")
    for name, kernel, launch, single in (
        ("row_product", "triton_backward_kernel", row_product_launch(128), ("p_out",)),
        ("merge", "triton_merge_kernel", merge_launch(128), ("p_a_lse", "p_b_lse", "p_lse")),
    ):
        path, types = f"attention.{kernel}:{name}_kernel", dict.fromkeys(single, "*fp32")
        yield build_of(f"{name} bf16 D128", path, launch, types, pointers="*bf16")


def _call(dtype: torch.dtype, dim: int, kind: str) -> AttentionCall:
    """A call on tensors without memory, for the flags that the launchers make of it."""
    precision: Precision = "int8" if kind.startswith("int8") else "model"
    kind = kind.removeprefix("int8").strip()
    length = 1000 if kind == "ragged" else 1024
    x = torch.empty((1, 1, length, dim), dtype=dtype, device="meta")
    tiling, k_tiling = Tiling.fixed(length, 128), Tiling.fixed(length, 64)
    if kind.startswith("variable"):
        offsets = torch.empty((1, 1, 9), dtype=torch.int32, device="meta")
        tiling = k_tiling = Tiling.variable(offsets, length)
    tile_map = TileMap.dense(tiling, k_tiling, "meta")
    marking = mask = centroids = None
    if kind.endswith(("mark", "skip_now")):
        marking = Marking(-10.0, skip_now=kind == "skip_now")
    if kind == "ragged":
        mask = torch.empty((1, length), dtype=torch.bool, device="meta")
    if kind.endswith("centroids"):
        means = torch.empty((1, 1, tile_map.k_tiles, dim), dtype=dtype, device="meta")
        centroids = TileCentroids(means, means)
    return check_call(x, x, x, tile_map, None, mask, True, marking, centroids, precision)


def _forward(name: str, call: AttentionCall, arch: int | str) -> Build:
    own = f"*{DTYPES[call.q.dtype]}"
    types = dict.fromkeys(("p_lse", "p_threshold", "p_bias"), "*fp32")
    types |= dict.fromkeys(("p_keep", "p_mask"), "*u8")
    types |= dict.fromkeys(("p_q", "p_k", "p_v", "p_out", "p_mean_k", "p_mean_v"), own)
    types |= {"scale_log2": "fp32", **dict.fromkeys(("p_q_scale", "p_k_scale"), "*fp32")}
    if call.precision == "int8":
        types |= dict.fromkeys(("p_q", "p_k"), "*i8")
    absent: set[str] = set()
    if call.mask is None:
        absent |= {"p_mask"}
    if call.precision == "model":
        absent |= {"p_q_scale", "p_k_scale"}
    if call.marking is None:
        absent |= {"p_threshold", "p_keep"}
    if call.centroids is None:
        absent |= {"p_mean_k", "p_mean_v", "p_bias"}
    if call.tile_map.is_fixed:
        absent |= {"p_work_tile", "p_work_row", "p_q_bound", "p_k_bound"}
    kernel = "attention.triton_kernel:tile_attention_kernel"
    return build_of(name, kernel, launch_for(call, arch), types, pointers="*i32", absent=absent)


def _backward(name: str, call: AttentionCall, arch: int | str) -> Iterator[Build]:
    types = dict.fromkeys(("p_sum", "p_delta", "p_more"), "*fp32")
    types |= dict.fromkeys(("p_index", "p_count"), "*i32")
    types |= {"p_mask": "*u8", **dict.fromkeys(("scale", "scale_log2"), "fp32")}
    absent = ("p_mask",) if call.mask is None else ()
    for kind, function, launch in (
        ("dq", "query_gradient_kernel", query_launch(call, arch)),
        ("dkv", "key_gradient_kernel", key_launch(call, arch, more=True)),
    ):
        yield build_of(
            f"attention {kind} {name}",
            f"attention.triton_backward_kernel:{function}",
            launch,
            types,
            pointers=f"*{DTYPES[call.q.dtype]}",
            absent=absent,
        )
