"""DraftAttention: the tiles of a draft worked out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention.draft_attention import DraftAttentionConfig, drafted
from ditaccel.attention.engine.attend import attend

GRID, TEXT, SCALE = (2, 8, 8), 12, 0.3
LENGTH = 128 + TEXT
CONFIG = DraftAttentionConfig(cell=(4, 4), density=0.3, min_tokens=0, dense_steps=0, break_even=1.0)


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        2 * torch.randn(2, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _cells():
    """Tokens of each cell, text in front."""
    frames, rows, columns = GRID
    number = torch.arange(frames * rows * columns).view(GRID)
    return [
        TEXT + number[f, r : r + 4, c : c + 4].flatten()
        for f in range(frames)
        for r in range(0, rows, 4)
        for c in range(0, columns, 4)
    ]


def test_a_head_keeps_the_pairs_of_cells_that_weigh_most_in_float64():
    q, k, v = _tensors()
    context = context_of(LENGTH, grid=GRID, text=(0, TEXT))
    plan = CONFIG.planner().plan(q, k, v, SCALE, context, {})
    cells = _cells()
    expected = torch.zeros(2, 4, LENGTH, LENGTH, dtype=torch.bool)
    expected[..., :TEXT], expected[..., :TEXT, :] = True, True
    for b in range(2):
        for h in range(4):
            means = [
                torch.stack([x[c].double().mean(0) for c in cells]) for x in (q[b, h], k[b, h // 2])
            ]
            draft = (means[0] @ means[1].T * SCALE).softmax(-1)
            least = draft.flatten().sort().values[int(0.7 * 64)]  # 44 of 64 are dropped
            kept = (draft >= least) | (draft == draft.amax(-1, keepdim=True))
            for i, j in kept.nonzero().tolist():
                expected[b, h, cells[i][:, None], cells[j]] = True
    pairs = computed_pairs(plan, 2, 4, LENGTH)
    # text shares its tile with no cell: 128 tokens are 8 tiles
    assert torch.equal(pairs, expected) and float(pairs.float().mean()) < 0.6
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, expected)
    assert float((out - reference).norm() / reference.norm()) < 1e-6


def test_one_threshold_per_head_and_no_empty_row():
    scores = torch.tensor([[[[9.0, 0.0], [1.0, 1.1]]]])
    assert drafted(scores, 0.5)[0, 0].tolist() == [[True, False], [False, True]]
    # of the largest half, both are in rows that are flat; the other row keeps its largest
    flat = torch.tensor([[[[0.0, 0.1, 0.0, 0.0], [0.0, 0.1, 0.0, 90.0]]]])
    assert drafted(flat, 0.125)[0, 0].tolist() == [
        [False, True, False, False],
        [False] * 3 + [True],
    ]
    assert bool(drafted(flat, 1.0).all())


def test_without_a_grid_cells_are_runs_and_padding_takes_no_part():
    q, k, v = _tensors()
    mask = torch.ones(2, LENGTH, dtype=torch.bool)
    mask[:, 32:64] = False
    plan = CONFIG.planner().plan(q, k, v, SCALE, context_of(LENGTH, key_mask=mask), {})
    assert plan.order is None
    kept = plan.tile_map.to_mask()
    assert kept.shape[-1] == 9 and not bool(kept[..., 2:4].any())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"density": 0.0}, r"density is 0.0; give a share in \(0, 1\]"),
        ({"cell": (2, 4)}, "rows and columns of 16 tokens or more"),
    ],
)
def test_bad_options(options, message):
    with pytest.raises(ditaccel.ConfigError, match=message):
        replace(CONFIG, **options)
