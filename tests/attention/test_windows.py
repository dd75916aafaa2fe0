"""Maps that follow from where tokens lie, each checked against its rule, pair of tokens by pair."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from tiny import generate, peaked

import ditaccel
from ditaccel import ConfigError
from ditaccel.attention.attention_tile import AttentionTileConfig, frame_map
from ditaccel.attention.clear import CLEARConfig
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import LayerContext
from ditaccel.attention.neighborhood import NeighborhoodConfig
from ditaccel.attention.radial import RadialConfig, window
from ditaccel.attention.sta import STAConfig
from ditaccel.core.denoising.tracker import DenoisingStep

GRID = (4, 6, 8)
TOKENS = math.prod(GRID)
SMALL = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}


def _context(grid=GRID, text=(0, 0), layer=1, **changes):
    length = math.prod(grid) + text[1] - text[0]
    step = DenoisingStep(0, 4, "cond", 500.0, sigma=0.5, total=10)
    return LayerContext(
        step, layer, 4, length, text=text if text[1] else None, grid=grid, **changes
    )


def _tensors(length, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(1, 2, length, 8, generator=generator) for _ in range(3)]


def _plan(config, context):
    q, k, v = _tensors(context.length)
    return config.planner().plan(q, k, v, 0.3, context, {})


def _pairs(plan, length):
    """The pairs of tokens that a plan computes, bool `(L, L)`, in the order of the model."""
    mask = plan.tile_map.to_mask()[0, 0]
    rows, columns = (
        tiling.tile_of_token("cpu")[0, 0]
        for tiling in (plan.tile_map.q_tiling, plan.tile_map.k_tiling)
    )
    by_place = mask[rows][:, columns]
    if plan.order is None:
        return by_place
    place = torch.argsort(plan.order.tokens)
    return by_place[place][:, place]


def _expected(rule, context, tiles_of):
    """A rule on pairs of coordinates, widened to whole tiles: every pair in Python.

    Args:
        rule: whether a token at (frame, row, column) sees one at another.
        context: where the call is.
        tiles_of: the tile of each token, a list by token.
    """
    length = context.length
    text = range(*(context.text or (0, 0)))
    first = context.grid_tokens[0]
    coordinates = dict(enumerate(itertools.product(*map(range, context.grid)), first))
    kept = set()
    for i, j in itertools.product(range(length), repeat=2):
        if i in text or j in text or rule(coordinates[i], coordinates[j]):
            kept.add((tiles_of[i], tiles_of[j]))
    at = torch.tensor(tiles_of)
    every = torch.zeros(int(at.max()) + 1, int(at.max()) + 1, dtype=torch.bool)
    for row, column in kept:
        every[row, column] = True
    return every[at][:, at]


def _tiles_of(plan, length):
    """The tile of each token, by where the plan's order puts it."""
    tile = plan.tile_map.q_tiling.tile
    place = range(length) if plan.order is None else torch.argsort(plan.order.tokens).tolist()
    return [p // tile for p in place]


def _error_of_output(plan, pairs, length):
    """Relative error against a softmax over these pairs alone, in float64."""
    q, k, v = _tensors(length)
    out = attend(plan, q, k, v, 0.3).output.double()
    scores = (q.double() @ k.double().transpose(-1, -2) * 0.3).masked_fill(~pairs, -math.inf)
    expected = scores.softmax(-1) @ v.double()
    return float((out - expected).norm() / expected.norm())


def _in_tile_window(x, y, tile, tiles, wide):
    """The rule of STA along one axis."""
    if wide >= tiles:
        return True
    centre = min(max(x // tile, wide // 2), tiles - 1 - wide // 2)
    return abs(centre - y // tile) <= wide // 2


@pytest.mark.parametrize("text", [(0, 0), (0, 5), (TOKENS, TOKENS + 21)])
def test_sta_keeps_whole_tiles_of_a_window(text):
    context, box, wide = _context(text=text), (1, 4, 4), (3, 1, 1)
    plan = _plan(STAConfig(box=box, window=wide, **SMALL), context)
    tiles = [-(-n // b) for n, b in zip(GRID, box, strict=True)]

    def rule(a, b):
        return all(map(_in_tile_window, a, b, box, tiles, wide))

    pairs = _pairs(plan, context.length)
    assert torch.equal(pairs, _expected(rule, context, _tiles_of(plan, context.length)))
    assert plan.tile_map.density() < 0.7
    assert _error_of_output(plan, pairs, context.length) < 2e-6


def test_sta_is_exact_where_the_tiles_divide_the_video():
    """Three of four frames, of squares of 4 x 4: no pair outside the window is computed."""
    context = _context((4, 4, 8))
    plan = _plan(STAConfig(box=(1, 4, 4), window=(3, 1, 1), **SMALL), context)
    assert plan.tile_map.density() == 3 / 4 / 2
    # by hand: the first square of frame 0 sees those of frames 0 to 2
    assert plan.tile_map.to_mask()[0, 0, 0].nonzero()[:, 0].tolist() == [0, 2, 4]
    # ... and that of frame 3 those of frames 1 to 3
    assert plan.tile_map.to_mask()[0, 0, 6].nonzero()[:, 0].tolist() == [2, 4, 6]


def _in_neighborhood(x, y, n, w, s, d):
    """The rule of GNA along one axis."""
    if x % d != y % d:
        return False
    own, last = x // d, (n - x % d - 1) // d
    leader = min(own // s * s + s // 2, last)
    centre = min(max(leader, w // 2), last - (w // 2 - 1 + w % 2))
    return centre - w // 2 <= y // d <= centre + w // 2 - 1 + w % 2


@pytest.mark.parametrize(
    ("wide", "stride", "dilation"),
    [
        ((2, 3, 4), (1, 1, 1), (1, 1, 1)),
        ((2, 4, 4), (2, 2, 4), (1, 1, 1)),
        ((2, 3, 2), (1, 2, 1), (1, 2, 3)),
    ],
)
@pytest.mark.parametrize("text", [(0, 0), (0, 5)])
def test_neighborhood_covers_the_windows(wide, stride, dilation, text):
    context = _context(text=text)
    config = NeighborhoodConfig(
        window=wide, stride=stride, dilation=dilation, box=(1, 4, 4), **SMALL
    )
    plan = _plan(config, context)

    def rule(a, b):
        return all(map(_in_neighborhood, a, b, GRID, wide, stride, dilation))

    pairs = _pairs(plan, context.length)
    assert torch.equal(pairs, _expected(rule, context, _tiles_of(plan, context.length)))
    assert plan.tile_map.density() < 0.75
    assert _error_of_output(plan, pairs, context.length) < 2e-6


def test_strided_and_dilated_windows_fall_into_whole_tiles():
    """Blocked attention, and with a dilation of 2 that of every other row: nothing in vain."""
    for dilation, share in (((1, 1, 1), 1 / 4), ((1, 2, 1), 1 / 4)):
        config = NeighborhoodConfig(
            window=(1, 4, 4), stride=(1, 4, 4), dilation=dilation, box=(1, 4, 4), **SMALL
        )
        plan = _plan(config, _context((1, 8, 8)))
        pairs = _pairs(plan, 64)
        assert float(pairs.float().mean()) == share
        rows, columns = torch.arange(64) // 8, torch.arange(64) % 8
        block = rows // 4 if dilation[1] == 1 else rows % 2
        same = (block[:, None] == block) & (columns[:, None] // 4 == columns // 4)
        assert torch.equal(pairs, same)


@pytest.mark.parametrize(("radius", "grid"), [(3.0, (1, 12, 16)), (2.0, (1, 13, 15))])
def test_clear_covers_circles(radius, grid):
    tokens = grid[1] * grid[2]
    context = _context(grid, text=(tokens, tokens + 7))
    plan = _plan(CLEARConfig(radius=radius, box=(1, 4, 4), **SMALL), context)

    def rule(a, b):
        return (a[1] - b[1]) ** 2 + (a[2] - b[2]) ** 2 < radius**2

    pairs = _pairs(plan, context.length)
    expected = _expected(rule, context, _tiles_of(plan, context.length))
    assert not bool((expected & ~pairs).any())
    # a box that lies in two tiles counts for both as a whole
    assert torch.equal(pairs, expected) or grid[1] == 13
    assert plan.tile_map.density() < 0.8
    assert _error_of_output(plan, pairs, context.length) < 2e-6


def test_attention_tile_by_hand():
    # frames 0 and 3 of six are references
    kept = frame_map(6, 2)
    assert kept[1].tolist() == [True, True, False, True, False, False]
    assert bool(kept[0].all()) and bool(kept[3].all())
    assert int((~kept).sum()) == 4 * 4 - 4  # (F - k)^2 - (F - k)
    assert torch.equal(frame_map(6, 0.2), kept) and bool(frame_map(6, 6).all())
    config = AttentionTileConfig(
        references=1, per_layer=(6, 1, 0, 1), q_tile=16, k_tile=16, **SMALL
    )
    context = _context()  # frames of 48 tokens: three tiles each
    pairs = _pairs(_plan(config, context), TOKENS)
    frame = torch.arange(TOKENS) // 48
    assert torch.equal(pairs, (frame[:, None] == frame) | (frame == 0) | (frame[:, None] == 0))
    assert _error_of_output(_plan(config, context), pairs, TOKENS) < 2e-6
    assert _plan(config, _context(layer=0)).tile_map.density() == 1
    assert _plan(config, _context(layer=2)).tile_map.density() == 1 / 4


def _radial_pairs(size, frames, tile, decay, neighbor, sink=False):
    """The rule of the authors, for each pair of frames on its own, every pair in Python."""
    tokens = size * frames
    tiles = -(-tokens // tile)
    kept = torch.eye(tiles, dtype=torch.bool)
    for i, j in itertools.product(range(frames), repeat=2):
        wide = window(abs(i - j), size, tile, decay, neighbor, True)
        counts = {}
        for row, column in itertools.product(range(size), repeat=2):
            if abs(row - column) <= wide:
                place = (i * size + row) // tile, j * size + column
                counts[place] = counts.get(place, 0) + 1
        for t, u in itertools.product(range(tiles), repeat=2):
            queries = min(tile, tokens - t * tile)
            seen = [c / queries for (row, key), c in counts.items() if (row, key // tile) == (t, u)]
            if seen and sum(share > 1 / 3 for share in seen) / len(seen) > 0.6:
                kept[t, u] = True
    return kept


def test_radial_windows_by_hand():
    # frames of 200 tokens have 8 bits: 256 / 2, 256 / 4, 256 / 8 for frames 1, 2 to 3, 4 to 7 away
    found = [window(d, 200, 64, 0.5, 0.5, True) for d in range(8)]
    assert found == [200, 100, 64, 64, 64, -1, 64, -1]
    assert window(2, 200, 16, 0.5, 0.5, True) == 32
    assert window(5, 200, 64, 0.5, 0.5, False) == 64


@pytest.mark.parametrize(("grid", "decay"), [((8, 4, 6), 0.5), ((5, 5, 7), 1.0)])
def test_radial_keeps_tiles_by_the_rule_of_its_authors(grid, decay):
    config = RadialConfig(decay=decay, neighbor=0.5, q_tile=16, k_tile=16, **SMALL)
    context = _context(grid)
    plan = _plan(config, context)
    expected = _radial_pairs(grid[1] * grid[2], grid[0], 16, decay, 0.5)
    assert torch.equal(plan.tile_map.to_mask()[0, 0], expected)
    assert plan.tile_map.density() < 0.98
    pairs = _pairs(plan, context.length)
    assert _error_of_output(plan, pairs, context.length) < 2e-6


def test_radial_keeps_text_and_a_first_frame():
    tiles = {"q_tile": 16, "k_tile": 16}
    config = RadialConfig(sinks=("first_frame",), **tiles, **SMALL)
    plan = _plan(config, _context(text=(0, 5)))
    mask = plan.tile_map.to_mask()[0, 0]
    # text in tile 0, frame 0 in the tokens 5 to 53: tiles 0 to 3 are attended to, 0 attends to all
    assert bool(mask[:, :4].all()) and bool(mask[0].all()) and not bool(mask.all())


MAPS = {
    "sta": STAConfig(box=(1, 4, 4), window=(1, 1, 1), **SMALL),
    "neighborhood": NeighborhoodConfig(box=(1, 4, 4), window=(1, 3, 3), stride=(1, 1, 1), **SMALL),
    "clear": CLEARConfig(radius=1.0, box=(1, 4, 4), **SMALL),
    "attention_tile": AttentionTileConfig(references=0, q_tile=16, k_tile=16, **SMALL),
    "radial": RadialConfig(decay=0.1, q_tile=16, k_tile=16, **SMALL),
}


@pytest.mark.parametrize("name", MAPS)
def test_every_token_sees_itself_on_odd_grids_and_on_a_line(name):
    for grid in ((1, 11, 11), (2, 7, 9), (5, 3, 1), None):
        context = _context(grid or (1, 1, 125), text=(0, 6))
        if grid is None:
            context = LayerContext(context.step, 1, 4, 131, text=(0, 6))
        plan = _plan(MAPS[name], context)
        pairs = _pairs(plan, context.length)
        assert bool(pairs.diagonal().all()) and bool(pairs[:6].all()) and bool(pairs[:, :6].all())
        assert plan.tile_map.density() < 1 or grid == (5, 3, 1)


@pytest.mark.parametrize("name", ["sta", "neighborhood"])
def test_a_first_frame_that_is_a_sink_has_tiles_of_its_own(name):
    options = {"box": (2, 4, 4), "sinks": ("first_frame",), **SMALL}
    if name == "sta":
        config = STAConfig(window=(1, 1, 1), **options)
    else:
        config = NeighborhoodConfig(window=(2, 4, 4), stride=(2, 4, 4), **options)
    plan = _plan(config, _context((5, 8, 8)))
    pairs = _pairs(plan, 320)
    assert bool(pairs[:, :64].all())
    assert int(pairs[:, 64:].any(0).sum()) == 256 and float(pairs.float().mean()) < 0.5


def test_maps_are_kept_for_a_generation_and_follow_a_schedule():
    q, k, v = _tensors(120)
    config = CLEARConfig(box=(1, 4, 4), schedule=((0.0, 2.0), (1.0, 1e6)), **SMALL)
    planner, state = config.planner(), {}
    sizes = []
    for index in (0, 9):
        step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=10)
        context = LayerContext(step, 1, 4, 120, grid=(1, 12, 10))
        sizes.append(planner.plan(q, k, v, 0.3, context, state).tile_map.density())
    assert sizes[0] < 0.8 and sizes[1] == 1


def test_bad_options_are_refused_in_one_line():
    for make, words in (
        (lambda: STAConfig(window=(2, 3, 3)), "odd"),
        (lambda: STAConfig(box=(8, 8)), "frames, rows and columns"),
        (lambda: NeighborhoodConfig(stride=(1, 9, 9), window=(4, 8, 8)), "at most the window"),
        (lambda: CLEARConfig(radius=0.0), "more than 0"),
        (lambda: AttentionTileConfig(references=1.5), "below 1"),
        (lambda: RadialConfig(neighbor=2.0), "from 0 to 1"),
    ):
        with pytest.raises(ConfigError, match=words):
            make()


def test_in_a_pipeline_maps_differ_from_dense_and_leave_nothing():
    pipe, call = peaked("wan")
    call = {**call, "num_inference_steps": 3}
    dense = generate(pipe, call)
    for config in MAPS.values():
        with ditaccel.accelerated(pipe, attention=config):
            first = generate(pipe, call)
            assert not torch.equal(first, dense) and torch.equal(generate(pipe, call), first)
            assert ditaccel.report(pipe).attention[0].density < 1
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", MAPS)
def test_given_frames_are_seen_by_all(name):
    """They are in the sequence, but not on the grid."""
    step = DenoisingStep(0, 4, "cond", 500.0, sigma=0.5, total=10)
    context = LayerContext(step, 1, 4, TOKENS + 30, grid=GRID, conditions=(0, 30))
    plan = _plan(MAPS[name], context)
    pairs = _pairs(plan, context.length)
    assert bool(pairs[:30].all()) and bool(pairs[:, :30].all()) and not bool(pairs.all())
