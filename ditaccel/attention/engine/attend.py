"""Carries a plan out: the tiles of its map, and what stands for the others."""

from __future__ import annotations

import torch
from torch import Tensor

from ...kernels import (
    Precision,
    TileAttentionOutput,
    merge_attention,
    moment_attention_backends,
    tile_attention,
    tile_attention_backends,
)
from .heads import OutputOfParts
from .planner import Plan
from .rest import centroids, rest_part


def attend(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    key_mask: Tensor | None = None,
    backend: str | None = None,
    precision: Precision = "model",
) -> TileAttentionOutput:
    """Attention by a plan, in the order of the model.

    Args:
        plan: what a planner gave for these tensors.
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        v: like k.
        scale: of the softmax.
        key_mask: bool `(B, L)`, True for keys that take part; None for all.
        backend: of `tile_attention`, None for the best that can run.
        precision: of its scores.

    Returns:
        The output, and the marks that the plan asks for; of a plan of parts, `OutputOfParts`.
    """
    if plan.heads is not None:
        parts = [attend(part, q, k, v, scale, key_mask, backend, precision) for part in plan.parts]
        every = torch.cat([part.output for part in parts], 1)
        made = OutputOfParts(every.index_select(1, plan.heads), None, None)
        made.parts = parts
        return made
    order, mask = plan.order, key_mask
    if order is not None:
        q, k, v = order.queries(q), order.keys(k), order.keys(v)
        mask = order.key_mask(key_mask)
    exact, extra = _exact(plan, q, k, v, scale, mask, backend, precision)
    out = exact.output
    if exact.lse is not None and plan.rest != "nothing":
        rest = rest_part(plan, q, k, v, scale, mask, exact.keep)
        out = merge_attention((out, exact.lse), rest)[0]
    if order is not None:
        out = order.back(out)
    if plan.branch is not None and extra is not None:
        out = plan.branch.add(out, extra if order is None else order.back(extra))
    return exact._replace(output=out)


def _exact(
    plan: Plan,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float,
    mask: Tensor | None,
    backend: str | None,
    precision: Precision,
) -> tuple[TileAttentionOutput, Tensor | None]:
    """The tiles of the map, and what a trained branch adds.

    With a log-sum-exp the rest has still to be merged in; means go into the same kernel where that
    makes no marks, which they would hide.
    """
    if plan.branch is not None:
        return plan.branch.run(plan, q, k, v, scale, mask, backend, precision)
    at_once = plan.rest == "means" and plan.marking is None
    result = tile_attention(
        q,
        k,
        v,
        plan.tile_map,
        scale=scale,
        mask=mask,
        return_lse=plan.rest != "nothing" and not at_once,
        marking=plan.marking,
        centroids=centroids(plan, q, k, v, scale, mask) if at_once else None,
        precision=precision,
        backend=backend,
    )
    return result, None


def slower_kernel(
    plan: Plan, q: Tensor, k: Tensor, v: Tensor, precision: Precision = "model"
) -> str:
    """Which Triton kernel that a plan launches cannot run on a device, and why; "" where all can.

    For the arguments see `attend`.
    """
    if plan.parts:
        return next(
            filter(None, (slower_kernel(part, q, k, v, precision) for part in plan.parts)), ""
        )
    tile_map = plan.tile_map
    found = tile_attention_backends(q, k, v, tile_map, marking=plan.marking, precision=precision)
    reason = found["triton"]
    if reason is not None:
        return f"the Triton kernel cannot run here ({reason})"
    if plan.rest != "moments":
        return ""
    tilings = tile_map.q_tiling, tile_map.k_tiling
    if not tile_map.is_fixed:
        return "there is no Triton kernel of moments for tiles that vary in size"
    every = torch.ones((1, 1, *(t.tiles for t in tilings)), dtype=torch.bool, device=q.device)
    reason = moment_attention_backends(q, k, v, every, *tilings)["triton"]
    return "" if reason is None else f"the Triton kernel of moments cannot run here ({reason})"
