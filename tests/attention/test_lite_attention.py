"""LiteAttention: its maps by hand, its state, its options, its guard rails."""

import math
from types import SimpleNamespace

import pytest
import torch
from ditaccel.kernels import tile_attention

from ditaccel import ConfigError, LiteAttentionConfig
from ditaccel.attention.engine.planner import Dense, LayerContext
from ditaccel.core.denoising.tracker import DenoisingStep

TILE = 16
SMALL = {"q_tile": TILE, "k_tile": TILE, "min_tokens": 0, "break_even": 0.97, "dense_steps": 0}


def context(index, *, layer=0, layers=2, length=130, text=None, total=20):
    step = DenoisingStep(0, index, "cond", 1000.0 - index, total=total)
    return LayerContext(step, layer, layers, length, text)


def clusters(seed=0, length=130, shift=0, strength=6.0):
    """q, k, v `(1, 2, L, 16)`: the queries of tile i look at the keys of tile i + shift, and less
    at others."""
    generator = torch.Generator().manual_seed(seed)
    count = math.ceil(length / TILE)
    centres = torch.linalg.qr(torch.randn(16, 16, generator=generator))[0][:count] * strength
    tiles = torch.arange(length) // TILE
    k = centres[tiles] + 0.3 * torch.randn(1, 2, length, 16, generator=generator)
    q = centres[(tiles + shift) % count] + 0.3 * torch.randn(1, 2, length, 16, generator=generator)
    return q, k, torch.randn(1, 2, length, 16, generator=generator)


class Loop:
    """One layer and branch over the steps of a loop, without a model."""

    def __init__(self, **options):
        self.planner = LiteAttentionConfig(**{**SMALL, **options}).planner()
        self.state = {}
        self.index = -1

    def step(self, q, k, v, skip=1, **place):
        """The map of the next step, bool `(1, 2, Tq, Tk)`, and what came of it."""
        self.index += skip
        scale = q.shape[-1] ** -0.5
        plan = self.planner.plan(
            q, k, v, scale, context(self.index, length=q.shape[2], **place), self.state
        )
        if isinstance(plan, Dense):
            return SimpleNamespace(mask=None, reason=plan.reason)
        result = tile_attention(q, k, v, plan.tile_map, scale=scale, marking=plan.marking)
        self.planner.update(plan, result, self.state)
        mask = plan.tile_map.to_mask().expand(*q.shape[:2], -1, -1)
        return SimpleNamespace(
            mask=mask, reason=plan.reason, output=result.output, marking=plan.marking
        )


def marks_by_hand(q, k, mask, threshold, reverse):
    """Tiles that may not be dropped, in float64, tile after tile and row after row."""
    scores = (q.double() @ k.double().transpose(-1, -2)) * q.shape[-1] ** -0.5 / math.log(2)
    kept = torch.zeros_like(mask)
    margin = math.inf
    for h in range(q.shape[1]):
        for i in range(mask.shape[2]):
            rows = scores[0, h, i * TILE : (i + 1) * TILE]
            visited = [j for j in range(mask.shape[3]) if mask[0, h, i, j]]
            if reverse:
                visited.reverse()
            running = torch.full((rows.shape[0],), -math.inf, dtype=torch.float64)
            for place, j in enumerate(visited):
                top = rows[:, j * TILE : (j + 1) * TILE].amax(-1)
                gap = top - running
                kept[0, h, i, j] = place == 0 or bool((gap > threshold).any())
                if place:
                    margin = min(margin, float((gap.max() - threshold).abs()))
                running = torch.maximum(running, top)
    assert margin > 1e-4, "too near to the threshold to tell float32 from float64"
    return kept


@pytest.mark.parametrize("alternate", [True, False])
def test_the_next_map_is_what_float64_says_by_hand(alternate):
    loop = Loop(threshold=-4.0, retest=0, alternate=alternate)
    expected = torch.ones(1, 2, 9, 9, dtype=torch.bool)
    counts = []
    for index in range(4):
        q, k, v = clusters(seed=index, shift=2)
        step = loop.step(q, k, v)
        assert torch.equal(step.mask, expected)
        assert step.marking.reverse == (alternate and index % 2 == 1)
        expected = marks_by_hand(q, k, step.mask, -4.0, step.marking.reverse)
        counts.append(int(step.mask.sum()))
    assert counts[0] == 2 * 81 and counts[1] < 0.8 * counts[0]
    if alternate:
        # from either end, all that is left is each end's first tile and the one that matters
        assert counts[-1] <= 2 * 9 * 3


def test_without_retest_maps_only_shrink_and_with_it_tiles_come_back():
    lost, found = Loop(threshold=-4.0, retest=0), Loop(threshold=-4.0, retest=4)
    masks = {"lost": [], "found": []}
    for index in range(14):
        q, k, v = clusters(seed=index, shift=2 if index < 6 else 5)
        for name, loop in (("lost", lost), ("found", found)):
            masks[name].append(loop.step(q, k, v).mask)
    for before, after in zip(masks["lost"], masks["lost"][1:], strict=False):
        assert not (after & ~before).any()
    matters = torch.zeros(9, 9, dtype=torch.bool)
    matters[torch.arange(9), (torch.arange(9) + 5) % 9] = True
    assert not masks["lost"][-1][..., matters].all()
    for mask in masks["found"][10:]:
        assert mask[..., matters].all()
    # three quarters of what was dropped stay away at any step
    assert masks["found"][-1].float().mean() < 0.7


def test_each_dropped_tile_is_tested_again_once_a_period():
    loop = Loop(threshold=-4.0, retest=5, alternate=False)
    data = clusters(shift=2)
    masks = [loop.step(*data).mask for _ in range(12)]
    always = torch.stack(masks[1:]).all(0)
    for start in (1, 4, 6):
        visits = torch.stack(masks[start : start + 5]).sum(0)
        assert (visits[~always] == 1).all() and (visits[always] == 5).all()


def test_text_and_must_keep_stay_and_must_skip_goes():
    q, k, v = clusters(length=144)
    options = {"must_keep": ((40, 50),), "must_skip": ((64, 100),)}
    loop = Loop(threshold=-1e-3, retest=0, **options)
    for index in range(4):
        mask = loop.step(q, k, v, text=(128, 144)).mask
        assert mask[..., :, 8].all() and mask[..., :8, 2:4].all()  # text; tokens 32 to 63
        assert mask[..., 8, :].all()  # queries of text see all keys
        assert not mask[..., :8, 4:6].any()  # the whole tiles within 64 to 99
        others = mask[..., :8, [0, 1, 6, 7]]
        assert others.all() if index == 0 else not others.all()


def test_skipped_tokens_change_nothing():
    q, k, v = clusters(length=144)
    other = v.clone()
    other[:, :, 64:96] = 1e3
    outputs = [Loop(must_skip=((60, 100),)).step(q, k, value).output for value in (v, other)]
    assert torch.equal(*outputs)
    assert not torch.equal(*(Loop().step(q, k, value).output for value in (v, other)))


def test_ranges_that_cannot_be_honoured_are_errors():
    data = clusters(length=144)
    with pytest.raises(ConfigError, match="must_skip holds no whole tile of 16 tokens"):
        Loop(must_skip=((10, 30),)).step(*data)
    with pytest.raises(ConfigError, match="must_skip covers the whole sequence"):
        Loop(must_skip=((0, 100), (100, 144))).step(*data)
    for name in ("must_skip", "must_keep"):
        with pytest.raises(ConfigError, match=f"{name}: the range 128 to 145 does not fit into"):
            Loop(**{name: ((128, 145),)}).step(*data)


def test_skip_now_leaves_tiles_out_of_the_very_step():
    q, k, v = clusters()
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    errors = []
    for skip_now in (False, True):
        loop = Loop(threshold=-4.0, skip_now=skip_now)
        errors.append(float((loop.step(q, k, v).output - dense).abs().max()))
    assert errors[0] < 1e-5 < errors[1] < 0.5


def test_age_is_counted_in_steps_and_ends_a_map():
    data = clusters()
    loop = Loop(threshold=-4.0, max_age=3, retest=0)
    reasons = [loop.step(*data, skip=skip).reason for skip in (1, 1, 3, 4, 1)]
    assert reasons == ["first map", "carried map", "carried map", "first map", "carried map"]


def test_first_steps_and_layers_stay_dense():
    data = clusters()

    def reason(index, layer, **options):
        loop = Loop(**options)
        loop.index = index - 1
        return loop.step(*data, layer=layer, layers=10).reason

    assert reason(1, 0, dense_steps=2) == "dense first steps"
    assert reason(2, 0, dense_steps=2) == "first map"
    assert reason(4, 0, dense_steps=0.25) == "dense first steps"  # 5 of 20
    assert reason(5, 0, dense_steps=0.25) == "first map"
    assert reason(5, 2, dense_layers=3) == "dense first layers"
    assert reason(5, 3, dense_layers=0.3) == "first map"
    assert reason(5, 2, dense_layers=0.3) == "dense first layers"


def test_thresholds_by_layer_and_part_of_the_loop():
    planner = LiteAttentionConfig(thresholds=(-3.0, (-9.0, -7.0, -5.0))).planner()
    chosen = [planner.threshold(context(i, layer=1, total=9)) for i in range(9)]
    assert chosen == [-9.0] * 3 + [-7.0] * 3 + [-5.0] * 3
    assert {planner.threshold(context(i, layer=0, total=9)) for i in range(9)} == {-3.0}
    assert planner.threshold(context(5, layer=1, total=None)) == -9.0
    with pytest.raises(ConfigError, match=r"thresholds has 2 entries, .* 3 attention layers"):
        planner.threshold(context(0, layers=3))


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"threshold": 0.0}, "threshold is 0.0; give powers of two below 0"),
        ({"threshold": 3}, "threshold is 3.0;"),
        ({"threshold": math.nan}, "threshold is nan;"),
        ({"threshold": "low"}, "threshold is 'low'; it must be a finite number"),
        ({"thresholds": (-3.0, 1.0)}, "thresholds is 1.0;"),
        ({"thresholds": ((-3.0, 0.0),)}, "thresholds is 0.0;"),
        ({"thresholds": ("x",)}, "thresholds is .*; it must be a list of finite numbers"),
        ({"dense_steps": -1}, "dense_steps is -1; give a number of steps"),
        ({"dense_steps": 1.5}, "dense_steps is 1.5; .* share of them below 1"),
        ({"dense_layers": 1.0}, "dense_layers is 1.0; give a number of layers"),
        ({"retest": -1}, "retest is -1"),
        ({"max_age": 0}, "max_age is 0"),
        ({"min_tokens": -1}, "min_tokens is -1"),
        ({"break_even": 0.0}, "break_even is 0.0; give a share"),
        ({"q_tile": 8}, "q_tile is 8; tiles have at least 16 tokens"),
        ({"k_tile": 0}, "k_tile is 0"),
        ({"backend": "cuda"}, "backend is 'cuda'; it must be one of: 'auto', 'triton'"),
        ({"must_keep": ((4, 4),)}, "must_keep: the range 4 to 4 is empty"),
        ({"must_keep": ((-1, 4),)}, "must_keep: the range -1 to 4"),
        ({"must_keep": ((0, 8), (4, 9))}, "must_keep: the range 4 to 9 overlaps"),
        ({"must_skip": ((8, 9), (0, 4))}, "must_skip: the range 0 to 4 overlaps .* or comes"),
        ({"must_skip": (4,)}, "must_skip is .*; it must be a list of pairs of whole numbers"),
        ({"must_skip": 4}, "must_skip is 4; it must be a list of pairs"),
        ({"must_skip": ((0.0, 4.0),)}, "must_skip is .*; it must be a list of pairs"),
        ({"must_keep": ((0, 9),), "must_skip": ((8, 12),)}, "must_keep and must_skip overlap"),
    ],
)
def test_bad_options_name_themselves(options, line):
    with pytest.raises(ConfigError, match=line):
        LiteAttentionConfig(**options)
