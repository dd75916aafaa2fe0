"""SVG2: clusters as tiles, held against arithmetic by hand in float64."""

from __future__ import annotations

import itertools
from dataclasses import replace

import pytest
import torch
from ditaccel.kernels import permute
from tiny import generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel import ConfigError, SVG2Config
from ditaccel.attention.engine.attend import attend
from ditaccel.attention.engine.planner import Dense, LayerContext, Plan
from ditaccel.attention.svg2 import cluster_mass, kept_clusters
from ditaccel.core.denoising.tracker import DenoisingStep

LENGTH, WIDTH = 96, 16


def _context(index: int = 4, text: tuple[int, int] | None = None, layer: int = 2) -> LayerContext:
    step = DenoisingStep(0, index, "cond", 500.0, sigma=0.5, total=10)
    return LayerContext(step, layer=layer, layers=4, length=LENGTH, text=text)


def _clustered(heads: int = 2, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Queries and keys in 6 tight groups, in random order, so that attention is really sparse."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2.0 * torch.randn(6, WIDTH, generator=generator)
    groups = torch.randint(6, (1, heads, LENGTH), generator=generator)

    def tokens() -> torch.Tensor:
        noise = 0.1 * torch.randn(1, heads, LENGTH, WIDTH, generator=generator)
        return centres[groups] + noise

    return tokens(), tokens(), torch.randn(1, heads, LENGTH, WIDTH, generator=generator)


def _run(plan: Plan, q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    return attend(plan, q, k, v, WIDTH**-0.5).output


def _error(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a - b).norm() / b.norm())


def _config(**changes: object) -> SVG2Config:
    options = {
        "q_clusters": 6,
        "k_clusters": 8,
        "min_tokens": 0,
        "break_even": 0.97,
        "min_share": 0.0,
        **changes,
    }
    return SVG2Config(dense_steps=0, dense_layers=0, **options)  # type: ignore[arg-type]


def _plan(config: SVG2Config, q, k, v, context=None, state=None):  # type: ignore[no-untyped-def]
    state = {} if state is None else state
    return config.planner().plan(q, k, v, WIDTH**-0.5, context or _context(), state)


def test_all_mass_is_dense_attention() -> None:
    q, k, v = _clustered()
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    plan = _plan(_config(top_p=1.0, compensate=False), q, k, v)
    assert plan.tile_map.density() == 1.0
    assert _error(_run(plan, q, k, v).double(), dense) < 4e-6


def test_the_map_keeps_the_mass_it_promises() -> None:
    q, k, v = _clustered()
    plan = _plan(_config(top_p=0.9, compensate=False), q, k, v)
    assert plan.tile_map.density() < 0.6
    weights = (q.double() @ k.double().transpose(-1, -2) * WIDTH**-0.5).softmax(-1)
    rows, columns = plan.order.q_order.long(), plan.order.k_order.long()
    ordered = weights.gather(2, rows[..., None].expand(weights.shape))
    ordered = ordered.gather(3, columns[:, :, None, :].expand(weights.shape))
    tile_of = [t.tile_of_token("cpu") for t in (plan.tile_map.q_tiling, plan.tile_map.k_tiling)]
    kept = plan.tile_map.to_mask()
    kept = kept.gather(2, tile_of[0][..., None].expand(-1, -1, -1, kept.shape[-1]))
    kept = kept.gather(3, tile_of[1][:, :, None, :].expand(ordered.shape))
    assert float((ordered * kept).sum(-1).mean()) > 0.88


def test_kept_clusters_by_hand() -> None:
    # scores log 6, log 3, log 1 with sizes 1, 1, 0: masses 2/3, 1/3 and none
    k = torch.tensor([6.0, 3.0, 1.0]).log()[None, None, :, None]
    sizes = torch.tensor([1.0, 1.0, 0.0])[None, None]
    q = torch.ones(1, 1, 1, 1)

    def kept(top_p: float, least: float = 0.0) -> list[bool]:
        return kept_clusters(cluster_mass(q, k, sizes, 1.0), top_p, least)[0, 0, 0].tolist()

    assert kept(0.6) == [True, False, False]
    assert kept(0.7) == [True, True, False]
    assert kept(0.1, least=0.7) == [True, True, False]
    # a cluster of many weak keys weighs by its size
    sizes = torch.tensor([1.0, 9.0, 0.0])[None, None]
    assert kept(0.6) == [False, True, False]


def test_centroids_are_the_means_of_their_clusters() -> None:
    q, k, v = _clustered()
    plan = _plan(_config(), q, k, v)
    assert plan.rest == "means" and plan.stats is not None
    offsets = plan.tile_map.k_tiling.offsets[0, 1].tolist()
    ordered = permute(v, plan.order.k_order)[0, 1]
    for cluster, (start, end) in enumerate(itertools.pairwise(offsets)):
        mean = ordered[start:end].mean(0) if end > start else torch.zeros(WIDTH)
        assert _error(plan.stats.moments.values[0, 1, cluster] + 1, mean + 1) < 1e-6


def test_compensation_lowers_the_error_at_the_same_map() -> None:
    q, k, v = _clustered(seed=5)
    q = 0.3 * q  # flatter: skipped clusters carry mass
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    errors = {}
    for on in (False, True):
        plan = _plan(_config(top_p=0.5, compensate=on), q, k, v)
        errors[on] = _error(_run(plan, q, k, v).double(), dense)
    assert errors[True] < 0.5 * errors[False]


def _mean_error(plan: Plan, bias: bool, seed: int = 3) -> float:
    q, k, v = _loose(seed)
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    if not bias:
        moments = plan.stats.moments
        flat = moments._replace(key_variance=torch.zeros_like(moments.key_variance))
        plan = replace(plan, stats=plan.stats._replace(moments=flat))
    return _error(_run(plan, q, k, v).double(), dense)


def _loose(seed: int) -> tuple[torch.Tensor, ...]:
    """Clusters with a spread that matters, in keys and in values, and more of it in some."""
    q, k, v = _clustered(seed=seed)
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(k.shape, generator=generator)
    return 0.5 * q, k + noise * torch.linspace(0.0, 1.5, LENGTH)[:, None], v


def test_the_spread_of_keys_weighs_their_mean() -> None:
    ratios = []
    for seed in range(4):
        plan = _plan(_config(top_p=0.2, k_clusters=12), *_loose(seed))
        ratios.append(_mean_error(plan, True, seed) / _mean_error(plan, False, seed))
    assert max(ratios) < 1.0, ratios


def test_clusters_without_spread_are_left_to_their_means() -> None:
    q, k, v = _clustered(seed=2)
    labels = torch.arange(LENGTH) % 8
    k, v = k[:, :, labels], v[:, :, labels]  # eight keys, each many times
    plan = _plan(_config(top_p=0.5, k_clusters=16, min_share=0.0, first_iterations=30), q, k, v)
    dense = torch.nn.functional.scaled_dot_product_attention(q.double(), k.double(), v.double())
    assert plan.tile_map.density() < 0.5
    assert _error(_run(plan, q, k, v).double(), dense) < 0.05


@pytest.mark.parametrize("text", [(0, 16), (80, 96)])
def test_text_is_attended_to_and_attends_to_all(text: tuple[int, int]) -> None:
    q, k, v = _clustered()
    plan = _plan(_config(top_p=0.3, compensate=False), q, k, v, _context(text=text))
    mask = plan.tile_map.to_mask()
    assert bool(mask[:, :, -1].all()) and bool(mask[..., -1].all())
    assert not bool(mask.all())
    sizes = plan.tile_map.k_tiling.sizes("cpu")[..., -1]
    assert sizes.tolist() == [[16, 16]]
    tail = plan.order.k_order[..., -16:]
    assert bool(((tail >= text[0]) & (tail < text[1])).all())
    dense = torch.nn.functional.scaled_dot_product_attention(q, k, v)
    out = _run(plan, q, k, v)
    rows = slice(*text)
    assert _error(out[:, :, rows], dense[:, :, rows]) < 1e-5


def test_clusterings_serve_as_long_as_refresh_says_and_expire() -> None:
    config = _config(refresh=2, max_age=3)
    state: dict = {}
    reasons = []
    for index in (0, 1, 2, 7):
        q, k, v = _clustered(seed=index)
        plan = _plan(config, q, k, v, _context(index), state)
        reasons.append(plan.reason)
        if index == 0:
            first = plan.order.q_order
        if index == 1:
            assert torch.equal(plan.order.q_order, first)
    assert reasons == ["new clusters", "same clusters", "new clusters", "new clusters"]
    # older than max_age: as if nothing had been known
    q, k, v = _clustered(seed=7)
    assert torch.equal(plan.order.q_order, _plan(config, q, k, v, _context(7), {}).order.q_order)


def test_first_steps_and_layers_stay_dense() -> None:
    q, k, v = _clustered()
    planner = SVG2Config(q_clusters=6, k_clusters=8, dense_steps=0.3, dense_layers=1).planner()
    for context in (_context(index=2), _context(layer=0)):
        assert isinstance(planner.plan(q, k, v, 0.25, context, {}), Dense)
    assert isinstance(planner.plan(q, k, v, 0.25, _context(index=3, layer=1), {}), Plan)


@pytest.mark.parametrize("build", [tiny_wan, tiny_flux])
def test_a_pipeline_with_all_mass_is_dense_and_restores(build) -> None:  # type: ignore[no-untyped-def]
    pipe, call = build()
    before = generate(pipe, call)
    torch.manual_seed(11)
    stream = torch.get_rng_state()
    config = _config(top_p=1.0, q_clusters=2, k_clusters=3)
    with ditaccel.accelerated(pipe, attention=config):
        out = generate(pipe, call)
        assert torch.equal(torch.get_rng_state(), stream), "the global generator was used"
        assert _error(out, before) < 1e-5
        again = generate(pipe, call)
        assert torch.equal(out, again), "state outlived a generation"
    assert torch.equal(generate(pipe, call), before)


@pytest.mark.parametrize(
    ("changes", "word"),
    [
        ({"top_p": 0.0}, "top_p"),
        ({"top_p": 1.1}, "top_p"),
        ({"min_share": -0.1}, "min_share"),
        ({"q_clusters": 0}, "q_clusters"),
        ({"refresh": 0}, "refresh"),
        ({"iterations": 0}, "iterations"),
        ({"backend": "cuda"}, "backend"),
    ],
)
def test_bad_options_are_named(changes: dict, word: str) -> None:
    with pytest.raises(ConfigError, match=word):
        _config(**changes)


def test_more_clusters_than_tokens_is_an_error() -> None:
    q, k, v = _clustered()
    with pytest.raises(ConfigError, match="q_clusters is 200, but there are only 96"):
        _plan(_config(q_clusters=200), q, k, v)
