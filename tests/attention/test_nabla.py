"""NABLA: the squares of a pooled map worked out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.nabla import NABLAConfig

GRID, TEXT, SCALE = (3, 8, 12), 10, 0.3
LENGTH = 288 + TEXT
CONFIG = NABLAConfig(square=(4, 4), top_p=0.6, min_tokens=0, dense_steps=0, break_even=1.0)


def _tensors(heads=2, kv_heads=2):
    generator = torch.Generator().manual_seed(1)
    return tuple(
        2 * torch.randn(1, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _squares():
    """Tokens of each square, and its frame, row and column of squares; text behind."""
    number = torch.arange(288).view(GRID)
    return [
        (number[f, 4 * r : 4 * r + 4, 4 * c : 4 * c + 4].flatten(), (f, r, c))
        for f in range(3)
        for r in range(2)
        for c in range(3)
    ]


@pytest.mark.parametrize("window", [(), (3, 1, 3)])
def test_the_published_rule_in_float64(window):
    q, k, v = _tensors()
    config = replace(CONFIG, window=window)
    context = context_of(LENGTH, grid=GRID, text=(288, LENGTH))
    plan = config.planner().plan(q, k, v, SCALE, context, {})
    squares = _squares()
    expected = torch.zeros(1, 2, LENGTH, LENGTH, dtype=torch.bool)
    expected[..., 288:], expected[..., 288:, :] = True, True
    for h in range(2):
        means = [
            torch.stack([x[tokens].double().mean(0) for tokens, _ in squares])
            for x in (q[0, h], k[0, h])
        ]
        shares = (means[0] @ means[1].T * SCALE).softmax(-1)
        ordered, order = shares.sort(-1)
        # ascending sums from 1 - P on are kept
        kept = torch.zeros_like(shares, dtype=torch.bool)
        kept.scatter_(-1, order, ordered.cumsum(-1) >= 1 - 0.6)
        for i, (rows, at) in enumerate(squares):
            for j, (columns, other) in enumerate(squares):
                near = window and all(
                    abs(a - b) <= n // 2 for a, b, n in zip(at, other, window, strict=True)
                )
                if bool(kept[i, j]) or near:
                    expected[0, h, rows[:, None], columns] = True
    pairs = computed_pairs(plan, 1, 2, LENGTH)
    assert torch.equal(pairs, expected) and float(pairs.float().mean()) < 0.7
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, expected)
    assert float((out - reference).norm() / reference.norm()) < 1e-6


def test_a_first_frame_that_is_a_sink_stays_apart():
    q, k, v = _tensors()
    config = replace(CONFIG, sinks=("first_frame",), top_p=0.2, window=(1, 1, 1))
    context = context_of(LENGTH, grid=GRID, text=(288, LENGTH))
    plan = config.planner().plan(q, k, v, SCALE, context, {})
    pairs = computed_pairs(plan, 1, 2, LENGTH)
    assert bool(pairs[..., :96].all()) and float(pairs[..., 96:288, 96:288].float().mean()) < 0.4
    # the window is the square itself
    for tokens, _ in _squares()[6:]:
        assert bool(pairs[:, :, tokens[:, None], tokens].all())


def test_bad_options():
    for options in ({"window": (3, 3)}, {"top_p": 0.0}, {"square": (2, 2)}):
        with pytest.raises(ditaccel.ConfigError, match="give "):
            replace(CONFIG, **options)
