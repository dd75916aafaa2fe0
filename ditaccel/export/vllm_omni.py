"""Sparse attention for vLLM-Omni: the callable that its SPARSE_ATTN dispatcher asks a plug-in for.

vLLM-Omni finds it by the entry point `ditaccel` of the group `vllm_omni.sparse_attn`, and calls it
for self-attention in place of dense attention (RFCs 2233 and 4661, pull request 4493):

```text
vllm-omni serve MODEL --diffusion-attention-config '{"per_role": {"self": {"backend": "SPARSE_ATTN",
    "extra": {"backend": "ditaccel", "params": {"method": "METHOD:option=value"}}}}}'
```

The dispatcher tells a plug-in neither which layer nor which guidance branch calls, so methods whose
maps follow from the queries and keys of the call, or from the grid of its tokens, work; methods
that remember something from step to step are refused. It hands over no mask either, since this
callable does not announce that it could use one.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..attention.engine.attend import attend
from ..attention.engine.planner import LayerContext, Plan, Planner, planner_of
from ..attention.engine.tile_planner import OF_THE_MAP
from ..config import parse_spec
from ..core.denoising.tracker import DenoisingStep
from ..errors import ConfigError, UnsupportedError
from ..pipelines.grids import Grid
from ..warning import warn

# Part of the plug-in's interface: inputs beyond these that it can make use of.
CAPABILITIES = {"supports_attention_mask": False, "supports_full_attn_spans": False}


def attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    params: Mapping[str, Any],
    is_causal: bool = False,
    softmax_scale: float | None = None,
) -> Tensor:
    """Self-attention over the tiles that a method chooses.

    Args:
        query: `(B, L, H, D)`, as all tensors of this interface.
        key: `(B, L, Hkv, D)`; Hkv divides H.
        value: like key.
        params: `method` is a spec of an attention method (`name:option=value,…`). Of what vLLM-Omni
            adds, `denoise_step_idx` and `total_denoise_steps` place the call in its loop, for the
            first steps that a method leaves dense, and `latent_shape` and `patch_size` give the
            grid of the tokens.
        is_causal: must be False.
        softmax_scale: of the scores; `1 / sqrt(D)` by default.

    Returns:
        `(B, L, H, D)`.

    Raises:
        ConfigError: no method is named, or its options do not fit.
        UnsupportedError: causal attention, or a method that needs more than one call shows.
    """
    if is_causal:
        raise UnsupportedError("ditaccel's attention is for denoisers; this call is causal")
    planner = _planner(str(params.get("method", "")))
    q, k, v = (each.transpose(1, 2) for each in (query, key, value))
    length, scale = q.shape[2], softmax_scale or q.shape[-1] ** -0.5
    plan: Any = None
    if length == k.shape[2] and length >= planner.least_tokens:
        state: dict[Any, Any] = {}
        plan = planner.plan(q, k, v, scale, _context(length, params), state)
    if isinstance(plan, Plan):
        out = attend(plan, q, k, v, scale, None, planner.backend, planner.precision).output
    else:
        out = F.scaled_dot_product_attention(q, k, v, scale=scale, enable_gqa=True)
    return out.transpose(1, 2)


attention.capabilities = CAPABILITIES  # type: ignore[attr-defined]


@functools.cache
def _planner(spec: str) -> Planner:
    """The planner of a spec, once it is clear that one call at a time is enough for it.

    Raises:
        ConfigError: there is no attention method in it, or its options do not fit.
        UnsupportedError: the method needs more than one call shows.
    """
    if not spec:
        raise ConfigError(
            'name an attention method in "params", as in {"method": "METHOD:option=value"}; '
            "ditaccel.methods() lists them"
        )
    config = parse_spec(spec)
    if config.attention is None or config.cache is not None:
        raise ConfigError(f"{spec!r} must name one attention method, and no caching method")
    planner = planner_of(config.attention)
    kind = type(planner)
    name = config.attention.method
    if planner.needs_transformer:
        raise UnsupportedError(
            f"{name} needs the transformer itself, which vLLM-Omni does not show"
        )
    if kind.update is not Planner.update or kind.shares_branches or _remembers(planner):
        raise UnsupportedError(
            f"{name} remembers something from step to step, and vLLM-Omni does not tell which "
            "layer and which guidance branch calls; use a method that makes its map for each call"
        )
    if getattr(config.attention, "dense_layers", 0):
        raise ConfigError("vLLM-Omni does not tell layers apart; give dense_layers=0")
    return planner


def _remembers(planner: Planner) -> bool:
    """Whether a planner keeps more than its newest map, as a call on noise shows.

    A map that is kept is made again here, since each call begins from nothing.
    """
    length = max(512, planner.least_tokens + -planner.least_tokens % 64)
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, length, 16, generator=generator) for _ in range(3))
    params = {"latent_shape": (length // 64, 8, 8), "patch_size": (1, 1, 1)}
    state: dict[Any, Any] = {}
    context = replace(_context(length, {**params, "denoise_step_idx": 1000}), layer=99, layers=100)
    with torch.no_grad():
        planner.plan(q, k, v, 0.25, context, state)
    return bool(set(state) - set(OF_THE_MAP))


def _context(length: int, params: Mapping[str, Any]) -> LayerContext:
    """Where a call is, as far as vLLM-Omni says."""
    index, total = (
        _number(params.get("denoise_step_idx")),
        _number(params.get("total_denoise_steps")),
    )
    if index is None:
        _warn_of_unknown_step()
        index, total = 10**6, None  # (behind all first steps)
    step = DenoisingStep(0, index, "", 0.0, total=total)
    return LayerContext(step, 0, 1, length, grid=_grid(length, params))


@functools.cache
def _warn_of_unknown_step() -> None:
    warn(
        "vLLM-Omni does not tell at which denoising step it calls for this model, so no first "
        "steps are left dense"
    )


def _number(value: Any) -> int | None:
    """A number, or the least of those of a batch: the request that is furthest behind decides."""
    if value is None:
        return None
    return int(value.min()) if isinstance(value, Tensor) else int(value)


def _grid(length: int, params: Mapping[str, Any]) -> Grid | None:
    """Frames, rows and columns of the tokens; None where they are not all of the sequence."""
    latent, patch = (_triple(params.get(name)) for name in ("latent_shape", "patch_size"))
    if latent is None or patch is None:
        return None
    frames, rows, columns = (size // part for size, part in zip(latent, patch, strict=True))
    return (frames, rows, columns) if frames * rows * columns == length else None


def _triple(value: Any) -> tuple[int, int, int] | None:
    """Three sizes: of a tensor or list per sample, those of the first one."""
    if value is None:
        return None
    flat = value.reshape(-1).tolist() if isinstance(value, Tensor) else list(value)
    first = flat[0] if isinstance(flat[0], (list, tuple)) else flat[:3]
    return int(first[0]), int(first[1]), int(first[2])
