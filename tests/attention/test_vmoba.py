"""VMoBA: the chunks that each query keeps, worked out by hand in float64."""

from dataclasses import replace

import pytest
import torch
from planners import computed_pairs, context_of, masked_softmax

import ditaccel
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.vmoba import VMoBAConfig, chunks_of

GRID, TEXT, SCALE = (2, 5, 6), 5, 0.3
LENGTH = 60 + TEXT
CONFIG = VMoBAConfig(
    q_tile=16, frames=1, window=(2, 3), box=(1, 3, 3), threshold=0.1, min_tokens=0, dense_steps=0,
    break_even=1.0,
)  # fmt: skip


def _tensors(heads=4, kv_heads=2):
    generator = torch.Generator().manual_seed(0)
    return tuple(
        torch.randn(1, h, LENGTH, 16, generator=generator) for h in (heads, kv_heads, kv_heads)
    )


def _chunks(cube):
    """Tokens of each chunk, those at the far edges smaller; text is in front."""
    number = TEXT + torch.arange(60).view(GRID)
    starts = [range(0, size, min(step, size)) for size, step in zip(GRID, cube, strict=True)]
    return [
        number[f : f + cube[0], r : r + cube[1], c : c + cube[2]].flatten()
        for f in starts[0]
        for r in starts[1]
        for c in starts[2]
    ]


@pytest.mark.parametrize(
    ("layer", "cube"), [(0, (1, 5, 6)), (1, (2, 2, 3)), (2, (1, 3, 3)), (3, (1, 5, 6))]
)
def test_the_published_rule_in_float64(layer, cube):
    q, k, v = _tensors()
    context = context_of(LENGTH, layer=layer, grid=GRID, text=(0, TEXT))
    plan = CONFIG.planner().plan(q, k, v, SCALE, context, {})
    chunks = _chunks(cube)
    order = torch.cat([*chunks, torch.arange(TEXT)])
    expected = torch.zeros(1, 4, LENGTH, LENGTH, dtype=torch.bool)
    for h in range(4):
        means = torch.stack([k[0, h // 2, tokens].double().mean(0) for tokens in chunks])
        kept = torch.zeros(LENGTH, len(chunks), dtype=torch.bool)
        for token in range(LENGTH):
            scores = q[0, h, token].double() @ means.T
            weights = (scores - scores.min()) / (scores.max() - scores.min()).clamp(min=1e-12)
            own = [i for i, tokens in enumerate(chunks) if token in tokens.tolist()]
            others = [i for i in weights.argsort(descending=True).tolist() if i not in own]
            held, share = 0.0, 0.1 * float(weights.sum())
            for i in [*own, *others]:
                if i not in own and held >= share:
                    break
                kept[token, i] = True
                held += float(weights[i])
        for rows in order.split(16):
            for i in kept[rows].any(0).nonzero().flatten().tolist():
                expected[0, h, rows[:, None], chunks[i]] = True
            if bool((rows < TEXT).any()):
                expected[0, h, rows] = True
    expected[..., :TEXT] = True
    pairs = computed_pairs(plan, 1, 4, LENGTH)
    assert torch.equal(pairs, expected)
    assert layer in (0, 3) or not bool(pairs.all())
    out = attend(plan, q, k, v, SCALE).output.double()
    reference = masked_softmax(q, k, v, SCALE, expected)
    assert float((out - reference).norm() / reference.norm()) < 1e-6


def test_its_own_chunk_comes_first_and_padding_never():
    scores = torch.tensor([[[[0.0, 4.0, 2.0, 9.0]]]])
    empty = torch.tensor([[[False, False, False, True]]])
    own = torch.tensor([2])
    # brought to 0 to 1: 0, 1, 1/2; the own chunk holds a third of the sum
    assert chunks_of(scores, own, 0.3, empty)[0, 0, 0].tolist() == [False, False, True, False]
    assert chunks_of(scores, own, 0.4, empty)[0, 0, 0].tolist() == [False, True, True, False]
    assert chunks_of(scores, own, 1.0, None).all()


def test_without_a_grid_chunks_are_runs():
    q, k, v = _tensors()
    plan = CONFIG.planner().plan(q, k, v, SCALE, context_of(LENGTH), {})
    assert plan.order is None and plan.tile_map.k_tiling.tile == 16


def test_bad_options():
    for options in ({"window": (3,)}, {"threshold": 0.0}, {"frames": -1}):
        with pytest.raises(ditaccel.ConfigError, match=next(iter(options))):
            replace(CONFIG, **options)
    with pytest.raises(ditaccel.ConfigError, match="give one of them"):
        replace(CONFIG, frames=0, window=(), box=())
