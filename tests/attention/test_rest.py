"""Any tile map takes any rest, by one definition in float64; a map is one file."""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import pytest
import torch
from ditaccel.kernels import TileMap, Tiling
from planners import bounds_of, context_of, heads_of, of, orders_of
from tiny import generate, peaked

import ditaccel
from ditaccel import (
    AdaSpaConfig,
    DraftAttentionConfig,
    LiteAttentionConfig,
    NABLAConfig,
    PBSConfig,
    RadialConfig,
    SLAConfig,
    SolConfig,
    SpargeConfig,
    STAConfig,
    SVG1Config,
    SVG2Config,
    VMoBAConfig,
    XAttentionConfig,
)
from ditaccel.attention.engine.attend import attend, slower_kernel
from ditaccel.attention.engine.options import FixedTileOptions
from ditaccel.attention.engine.planner import Dense, DenseReason, Plan
from ditaccel.attention.engine.tile_planner import MaskPlanner
from ditaccel.tuning.observe import observed

WIDTH, LENGTH, SCALE = 8, 75, 0.3
GRID = (3, 5, 5)
COMMON = {"min_tokens": 0, "dense_steps": 0, "dense_layers": 0, "break_even": 1.0}
SMALL = {"q_tile": 16, "k_tile": 16, **COMMON}


def _context(index=0, **changes):
    return context_of(LENGTH, index, **changes)


def _tensors(heads=4, kv_heads=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (
        torch.randn(2, h, LENGTH, WIDTH, generator=generator) for h in (heads, kv_heads, kv_heads)
    )
    # tiles that differ, and queries that tell them apart
    tiles = torch.arange(LENGTH) // 16
    centres = torch.randn(2, 1, 5, WIDTH, generator=generator)
    return q + 2 * centres[:, :, (tiles + 1) % 5], k + 2 * centres[:, :, tiles], v


# -- the definition, in float64: one query tile and one key tile at a time --


def defined(plan, rest, q, k, v, mask=None, stands_for=None):
    """Attention by a plan: the tiles of its map, and the others as `rest` says, in float64."""
    group = q.shape[1] // k.shape[1]
    q, k, v = q.double(), k.double(), v.double()
    out = torch.zeros_like(q)
    for b, (h, (own, at)) in itertools.product(
        range(len(q)), enumerate(heads_of(plan, q.shape[1]))
    ):
        tile_map = own.tile_map
        computed = of(tile_map.to_mask(), b, at)
        marginal = ~computed if own.stands_for is None else own.stands_for[b, at]
        if stands_for is not None:
            marginal = stands_for[b, h]
        rows, columns = orders_of(own, b, at, LENGTH)
        keys_of = []
        for start, end in itertools.pairwise(bounds_of(tile_map.k_tiling, b, at)):
            tokens = columns[start:end]
            keys_of.append(tokens if mask is None else tokens[mask[b, tokens]])
        for i, (start, end) in enumerate(itertools.pairwise(bounds_of(tile_map.q_tiling, b, at))):
            if start == end:
                continue
            queries = q[b, h, rows[start:end]]
            _one_tile(
                out[b, h], rows[start:end], queries, computed[i], marginal[i], keys_of,
                k[b, h // group], v[b, h // group], rest,
            )  # fmt: skip
    return out


def _one_tile(out, rows, queries, computed, marginal, keys_of, k, v, rest):
    exact = torch.cat([keys_of[j] for j in computed.nonzero().flatten().tolist()] or [rows[:0]])
    logits, values = SCALE * queries @ k[exact].T, v[exact]
    at = [j for j in marginal.nonzero().flatten().tolist() if len(keys_of[j])]
    if rest == "nothing" or not at:
        if logits.shape[1]:
            out[rows] = logits.softmax(-1) @ values
        return
    means, covariances, halves, shares = [], [], [], []
    for j in at:
        keys, vals = k[keys_of[j]], v[keys_of[j]]
        d, e = keys - keys.mean(0), vals - vals.mean(0)
        half = SCALE**2 * (queries.mean(0).square() * d.square().mean(0)).sum() / 2
        shares.append(SCALE * queries @ keys.mean(0) + torch.log(len(keys) * (1 + half)))
        means.append(vals.mean(0))
        covariances.append(e.T @ d / len(keys))
        halves.append(half)
    own = torch.stack(shares, -1)
    weights = torch.cat([logits, own], -1).softmax(-1)
    out[rows] = weights @ torch.cat([values, torch.stack(means)])
    if rest == "moments":
        within = own.softmax(-1).mean(0) / (1 + torch.stack(halves))
        mixed = (within[:, None, None] * torch.stack(covariances)).sum(0)
        share = weights[:, logits.shape[1] :].sum(-1, keepdim=True)
        out[rows] += share * SCALE * queries @ mixed.T


# -- a map of one file --


@dataclass(frozen=True, kw_only=True)
class _Checkers(FixedTileOptions):
    method = "checkers"

    def planner(self):
        return _CheckersPlanner(self)


class _CheckersPlanner(MaskPlanner):
    serves = None
    made = 0

    def mask(self, q, k, v, scale, context, state):
        self.made += 1
        rows, columns = (tiling.tiles for tiling in self.tilings(q, k, context))
        return (torch.arange(rows)[:, None] + torch.arange(columns)) % 2 == 0


MAPS = {
    "lite_attention": (LiteAttentionConfig, {"threshold": -0.5, "alternate": False, **SMALL}),
    "lite_attention, skipping now": (
        LiteAttentionConfig,
        {"threshold": -0.5, "alternate": False, "skip_now": True, **SMALL},
    ),
    "svg2": (
        SVG2Config,
        {"top_p": 0.4, "min_share": 0, "q_clusters": 5, "k_clusters": 9, **COMMON},
    ),
    "svg2, by mass": (
        SVG2Config,
        {"top_p": 0.4, "q_clusters": 5, "k_clusters": 9, "compensate": False, **COMMON},
    ),
    "sla": (SLAConfig, {"critical": 0.3, "cube": (3, 2, 2), **SMALL}),
    "sla, negligible": (SLAConfig, {"critical": 0.3, "negligible": 0.3, "cube": (), **SMALL}),
    "sta": (STAConfig, {"box": (1, 3, 3), "window": (1, 1, 1), **COMMON}),
    "svg1": (SVG1Config, {"density": 0.3, **SMALL}),
    "radial": (RadialConfig, {"decay": 0.1, "neighbor": 0.1, **SMALL}),
    "draft_attention": (DraftAttentionConfig, {"cell": (4, 4), "density": 0.4, **COMMON}),
    "xattention": (XAttentionConfig, {"stride": 4, "threshold": 0.4, **SMALL}),
    "nabla": (NABLAConfig, {"square": (4, 4), "top_p": 0.4, **COMMON}),
    "vmoba": (
        VMoBAConfig,
        {"q_tile": 16, "frames": 1, "window": (2, 2), "threshold": 0.02, **COMMON},
    ),
    "sparge": (SpargeConfig, {"top_p": 0.4, "similarity": -1.0, **SMALL}),
    "adaspa": (AdaSpaConfig, {"density": 0.4, **SMALL}),
    "sol": (SolConfig, {"tau": 0.5, "neighbours": 0, **SMALL}),
    "pbs": (PBSConfig, {"threshold": 0.4, **SMALL}),
    "checkers": (_Checkers, SMALL),
}
RESTS = ("nothing", "means", "moments")


def _planned(name, rest, q, k, v, context, steps=2):
    """The plan of the second step (marks of the first one included), and its output."""
    kind, options = MAPS[name]
    planner, state = kind(**options, rest=rest).planner(), {}
    with torch.no_grad():
        for index in range(steps):
            at = _context(index, text=context.text, key_mask=context.key_mask, grid=context.grid)
            plan = planner.plan(q, k, v, SCALE, at, state)
            assert isinstance(plan, Plan)
            result = attend(plan, q, k, v, SCALE, context.key_mask)
            planner.update(plan, result, state)
    return plan, result


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("name", MAPS)
@pytest.mark.parametrize("masked", [False, True])
def test_every_map_with_every_rest_in_float64(name, rest, masked):
    q, k, v = _tensors()
    mask = None
    if masked:
        mask = torch.ones(2, LENGTH, dtype=torch.bool)
        mask[0, 20:40], mask[1, 60:] = False, False
    plan, result = _planned(name, rest, q, k, v, _context(key_mask=mask, grid=GRID))
    assert plan.tile_map.density() < 0.9, "nothing was skipped"
    keep = result.keep
    stands_for = None
    if keep is not None and plan.marking.skip_now:
        assert bool((plan.tile_map.to_mask() & ~keep).any()), "nothing was left out just now"
        stands_for = ~keep
        plan_seen = TileMap.from_mask(keep, plan.tile_map.q_tiling, plan.tile_map.k_tiling)
        plan = Plan(plan_seen, "", rest=plan.rest)
    expected = defined(plan, rest, q, k, v, mask, stands_for)
    error = (result.output.double() - expected).norm() / expected.norm()
    assert float(error) < 2e-6


@pytest.mark.parametrize("name", MAPS)
def test_a_better_rest_has_a_smaller_error(name):
    q, k, v = _tensors(seed=3)
    q = 0.3 * q  # flat: what is skipped carries mass
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v, scale=SCALE, enable_gqa=True)
    errors = []
    for rest in RESTS:
        _, result = _planned(name, rest, q, k, v, _context(grid=GRID))
        errors.append(float((result.output - dense).norm() / dense.norm()))
    assert errors[2] < errors[1] < 0.9 * errors[0]


@pytest.mark.parametrize("rest", RESTS)
@pytest.mark.parametrize("kind", ["lite_attention", "svg2", "sla"])
def test_rests_in_pipelines(kind, rest):
    pipe, call = peaked("hunyuan_video")  # text and a mask
    call = {**call, "num_inference_steps": 5}
    config, options = MAPS[kind]
    with ditaccel.accelerated(pipe, attention=config(**options, rest=rest)):
        first = generate(pipe, call)
        assert torch.isfinite(first).all() and torch.equal(generate(pipe, call), first)
        assert ditaccel.report(pipe).attention[0].density < 1


# -- the base --


def test_a_map_of_one_file_runs_in_a_pipeline():
    pipe, call = peaked("flux")
    call = {**call, "num_inference_steps": 4}
    config = _Checkers(**{**SMALL, "dense_layers": 1, "dense_steps": 2}, rest="moments")
    planner = config.planner()
    dense = generate(pipe, call)
    with observed(pipe, planner) as session:
        sparse = generate(pipe, call)
        rows = session.report().attention[0].rows()
    assert torch.isfinite(sparse).all() and not torch.equal(sparse, dense)
    reasons = {(r["reason"], r["step"] < 2, r["layer"] < 1) for r in rows}
    assert reasons == {
        ("dense first steps", True, True),
        ("dense first steps", True, False),
        ("dense first layers", False, True),
        ("checkers", False, False),
    }
    sparse_layers = {(r["layer"], r["branch"]) for r in rows if r["layer"]}
    assert planner.made == len(sparse_layers), "it was made again"


def test_text_is_added_to_a_mask_and_a_state_that_is_too_old_is_cleared():
    q, k, v = _tensors()
    planner, state = _Checkers(**SMALL).planner(), {}
    planner.max_age = 2
    plan = planner.plan(q, k, v, SCALE, _context(0, text=(64, 75)), state)
    mask = plan.tile_map.to_mask()[0, 0]
    assert bool(mask[4].all()) and bool(mask[:, 4].all()) and not bool(mask.all())
    planner.plan(q, k, v, SCALE, _context(2), state)
    assert planner.made == 1
    planner.plan(q, k, v, SCALE, _context(5), state)
    assert planner.made == 2


def test_dense_calls_have_a_kind():
    q, k, v = _tensors()
    planner = _Checkers(**{**SMALL, "dense_steps": 0.2, "dense_layers": 2}).planner()
    early = planner.plan(q, k, v, SCALE, _context(1), {})
    late = planner.plan(q, k, v, SCALE, _context(2), {})
    assert (early.kind, late.kind) == (DenseReason.FIRST_STEPS, DenseReason.FIRST_LAYERS)
    assert late.reason == "dense first layers" and not late.kind.explained
    assert Dense(DenseReason.OTHER, "because").reason == "because"


def test_what_a_plan_launches_follows_from_the_plan(monkeypatch):
    q, k, v = _tensors()
    tilings = Tiling.fixed(LENGTH, 16), Tiling.fixed(LENGTH, 16)
    plan = Plan(TileMap.dense(*tilings), "all", rest="moments")
    assert "the Triton kernel cannot run here" in slower_kernel(plan, q, k, v)
    ready = lambda *_, **__: {"triton": None}  # noqa: E731
    monkeypatch.setattr("ditaccel.attention.engine.attend.tile_attention_backends", ready)
    assert "the Triton kernel of moments cannot run here" in slower_kernel(plan, q, k, v)
    assert slower_kernel(Plan(TileMap.dense(*tilings), "all"), q, k, v) == ""
