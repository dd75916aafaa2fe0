"""Maps that differ between heads: what each class keeps, and which class a head gets."""

from __future__ import annotations

import json
import math

import pytest
import torch
from ditaccel.kernels import Tiling
from planners import computed_pairs, context_of, masked_softmax
from tiny import generate, peaked

import ditaccel
from ditaccel import ConfigError, UsageError
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.head_classes import band, by_position
from ditaccel.attention.engine.planner import Dense
from ditaccel.attention.rainfusion import RainFusionConfig, checkerboard
from ditaccel.attention.sparse_vdit import SparseVDiTConfig
from ditaccel.attention.svg1 import SVG1Config, band_width

GRID = (6, 4, 8)  # frames of 32 tokens
TOKENS = math.prod(GRID)
SCALE = 0.5
SMALL = {
    "q_tile": 16,
    "k_tile": 16,
    "min_tokens": 0,
    "dense_steps": 0,
    "dense_layers": 0,
    "break_even": 1.0,
}


def _tensors(length=TOKENS, start=0):
    """Head 0 looks at its own frame, head 1 at its own position, head 2 at everything alike."""
    generator = torch.Generator().manual_seed(0)
    frame, position = torch.arange(TOKENS) // 32, torch.arange(TOKENS) % 32
    # (a position's neighbours are alike, so that a band of a few positions keeps the mass)
    q = 0.1 * torch.randn(1, 3, length, 40, generator=generator)
    at = slice(start, start + TOKENS)
    q[0, 0, at] += 5 * torch.nn.functional.one_hot(frame, 40)
    q[0, 1, at] += 5 * torch.nn.functional.one_hot(position, 40)
    return q, q.clone(), torch.randn(1, 3, length, 40, generator=generator)


def _plan(config, context=None, tensors=None, state=None):
    context = context or context_of(TOKENS, 4, grid=GRID)
    q, k, v = tensors or _tensors()
    return config.planner().plan(q, k, v, SCALE, context, {} if state is None else state)


def _checked(plan, tensors=None):
    """The pairs of each head, once the output is what a float64 softmax over them gives."""
    q, k, v = tensors or _tensors()
    pairs = computed_pairs(plan, 1, q.shape[1], q.shape[2])
    out = attend(plan, q, k, v, SCALE).output.double()
    expected = masked_softmax(q, k, v, SCALE, pairs).nan_to_num()
    assert float((out - expected).norm() / expected.norm()) < 4e-6
    return pairs[0]


def _bands(width, tile=16):
    """Pairs whose tiles are near enough: in raster order, and by position; by hand."""
    at = torch.arange(TOKENS)
    by_position = at % 32 * 6 + at // 32
    return [
        (place[:, None] // tile - place // tile).abs() * tile - tile + 1 <= width
        for place in (at, by_position)
    ]


def test_tiles_of_a_band():
    # places 0-15, 16-31, 32-39: the nearest of the first and the last are 17 apart
    tiling = Tiling.fixed(40, 16)
    assert band(16, tiling, tiling).tolist() == [[1, 1, 0], [1, 1, 1], [0, 1, 1]]
    assert bool(band(17, tiling, tiling).all()) and band(0, tiling, tiling).sum() == 3
    # 1 - (1 - w / L)^2 = 0.36 at w = 0.2 L
    assert band_width(0.36, 1000, 0, Tiling.fixed(1000, 10)) == 200
    assert band_width(0.36 + 0.2, 1000, 100, Tiling.fixed(1000, 10)) == 200
    assert band_width(0.36, 1000, 0, Tiling.fixed(1000, 128)) == 256
    assert band_width(1.0, 1000, 0, Tiling.fixed(1000, 128)) == 1000


def test_svg_tells_spatial_from_temporal_heads():
    pairs = _checked(_plan(SVG1Config(density=0.3, **SMALL)))
    width = band_width(0.3, TOKENS, 0, Tiling.fixed(TOKENS, 16))
    spatial, temporal = _bands(width)
    assert torch.equal(pairs[0], spatial) and torch.equal(pairs[1], temporal)
    assert not torch.equal(spatial, temporal)


def test_svg_with_text_and_a_first_frame_that_is_a_sink():
    """In the order of positions too, it is frame 0."""
    length = TOKENS + 10
    tensors = _tensors(length, start=10)
    context = context_of(length, 4, grid=GRID, text=(0, 10))
    config = SVG1Config(density=0.3, sinks=("first_frame",), **SMALL)
    pairs = _checked(_plan(config, context, tensors), tensors)
    for head in pairs[:2]:
        assert bool(head[:, : 10 + 32].all()) and bool(head[:10].all())
        assert 0.3 < float(head.float().mean()) < 0.75
    assert not torch.equal(pairs[0], pairs[1])


def test_a_choice_serves_some_steps_and_states_are_apart():
    config = SVG1Config(density=0.3, refresh=3, **SMALL)
    planner, state = config.planner(), {}
    q, k, v = _tensors()
    looks = []
    planner.choose = lambda *a: looks.append(1) or type(planner).choose(planner, *a)
    for index in range(7):
        planner.plan(q, k, v, SCALE, context_of(TOKENS, index, grid=GRID), state)
    assert len(looks) == 3
    planner.plan(q, k, v, SCALE, context_of(TOKENS, 6, grid=GRID), {})
    assert len(looks) == 4


def test_heads_that_share_keys_share_a_class():
    q, k, v = _tensors()
    q = torch.cat([q[:, :1], q[:, 1:2]], 1).repeat_interleave(2, 1)
    k, v = k[:, :2], v[:, :2]
    plan = _plan(SVG1Config(density=0.3, **SMALL), tensors=(q, k, v))
    pairs = _checked(plan, (q, k, v))
    assert torch.equal(pairs[0], pairs[1]) and torch.equal(pairs[2], pairs[3])
    assert not torch.equal(pairs[0], pairs[2])


def test_rainfusion_takes_the_first_class_that_keeps_the_mass():
    pairs = _checked(_plan(RainFusionConfig(bandwidth=0.2, recall=0.8, **SMALL)))
    spatial, temporal = _bands(0.2 * TOKENS // 16 * 16)
    assert torch.equal(pairs[0], spatial) and torch.equal(pairs[1], temporal)
    # head 2 keeps a third of its mass in a band: all queries see a checkerboard
    seen = pairs[2].all(0)
    at = torch.arange(TOKENS)
    board = (at // 32 + at // 8 % 4 + at % 8) % 2 == 0  # frame, row and column
    assert torch.equal(seen, board) and torch.equal(pairs[2].any(0), board)
    context = context_of(TOKENS, grid=GRID)
    assert torch.equal(checkerboard(context, 2), board)
    assert int(checkerboard(context, 3).sum()) == TOKENS // 3


def test_every_head_is_dense_where_nothing_is_left_out():
    for config in (
        SVG1Config(density=1.0, **SMALL),
        RainFusionConfig(bandwidth=1.0, **SMALL),
        SparseVDiTConfig(limit=0.0, **SMALL),
    ):
        assert _plan(config).tile_map.density() == 1.0


def test_sparse_vdit_takes_the_cheapest_pattern():
    config = SparseVDiTConfig(limit=0.3, trade=0.5, bandwidth=0.2, columns=0.3, **SMALL)
    planner = config.planner()
    q, k, v = _tensors()
    v[:, 2] = 0.01 * v[:, 2] + torch.linspace(1, 2, 40)  # alike: any columns give its output
    context = context_of(TOKENS, 4, grid=GRID)
    plan = planner.plan(q, k, v, SCALE, context, {})
    pairs = _checked(plan, (q, k, v))
    spatial, temporal = _bands(0.2 * TOKENS)
    assert torch.equal(pairs[0], spatial) and torch.equal(pairs[1], temporal)
    columns = pairs[2].all(0)
    assert torch.equal(pairs[2].any(0), columns)
    assert int(columns.sum()) == 16 * round(0.3 * TOKENS / 16)
    # costs by hand, of head 0: its band, and nothing at all
    classes = planner.classes(q, k, SCALE, context)
    costs = planner._cost(classes, q, k, v, SCALE, context)
    dense = masked_softmax(q, k, v, SCALE, torch.ones_like(spatial))[0, 0]
    banded = masked_softmax(q, k, v, SCALE, spatial)[0, 0]
    rows = planner.rows(context, q.device)
    error = (banded - dense)[rows].square().sum() / dense[rows].square().sum()
    expected = float(error) + 0.5 * float(spatial.float().mean())
    assert float(costs[2, 0]) == pytest.approx(expected, rel=1e-4)
    assert costs[:2].tolist() == [[0.5] * 3, [1.0] * 3]
    full = _plan(SparseVDiTConfig(limit=0.0, **SMALL), tensors=(q, k, v))
    assert full.tile_map.density() == 1


def test_a_searched_plan_is_saved_and_used(tmp_path):
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": 3}
    dense = generate(pipe, call)
    path = tmp_path / "plan.json"
    options = {"limit": 2.0, **SMALL}
    with ditaccel.accelerated(pipe, attention=SparseVDiTConfig(save_plan=path, **options)):
        assert torch.equal(generate(pipe, call), dense), "a search changes nothing"
    found = json.loads(path.read_text())
    layers = found["words"]["transformer"]
    assert {len(steps) for steps in layers} == {3} and found["length"] == 144
    assert set("".join(map("".join, layers))) <= set("SDMV")
    with ditaccel.accelerated(pipe, attention=SparseVDiTConfig(plan=path, **options)):
        sparse = generate(pipe, call)
        assert not torch.equal(sparse, dense) and torch.equal(generate(pipe, call), sparse)
        assert ditaccel.report(pipe).attention[0].density < 1
    config = SparseVDiTConfig(plan=path, **{**options, "q_tile": 32})
    with (
        pytest.raises(ConfigError, match="search again with save_plan"),
        ditaccel.accelerated(pipe, attention=config),
    ):
        generate(pipe, call)
    path.write_text("{}")
    with pytest.raises(UsageError, match="search again with save_plan"):
        SparseVDiTConfig(plan=path).planner()
    with pytest.raises(ConfigError, match="only one of them"):
        SparseVDiTConfig(plan=path, save_plan=path)


def test_pictures_and_lines_have_no_frames():
    assert by_position(context_of(100), torch.device("cpu")) is None  # a line
    order, inverse = by_position(context_of(12, grid=(1, 3, 4)), torch.device("cpu"))
    assert order.tolist() == [0, 4, 8, 1, 5, 9, 2, 6, 10, 3, 7, 11]
    assert order[inverse].tolist() == list(range(12))
    for config in (SVG1Config, RainFusionConfig, SparseVDiTConfig):
        plan = _plan(config(**SMALL), context_of(TOKENS))
        assert not isinstance(plan, Dense)
        _checked(plan)
