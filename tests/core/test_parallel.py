"""Ranks that compute one transformer together decide as one; what cannot work so is refused."""

from statistics import median

import pytest
import torch
import two_ranks
from diffusers import ContextParallelConfig
from diffusers.hooks.hooks import HookRegistry, ModelHook
from inspection import traces
from tiny import generate, tiny_dit, tiny_flux, tiny_wan
from two_ranks import build

import ditaccel
from ditaccel import config as configs
from ditaccel.core.ranks import Ranks

MESSAGE = r"transformer is split over several ranks, and not by .* run one whole pipeline per rank"
# Flux shares tokens out at its root, Wan at its first block.
SPECS = [
    "first_block_residual:threshold={threshold}",
    "confidence_gated_taylor:threshold={threshold},warmup=2",
    "confidence_gated_taylor:threshold={threshold},warmup=2,target=residual,reduce=worst_sample",
    "adaptive_taylor:tolerance={threshold},warmup=3",
    "reuse:interval=2,target=residual",
    "taylorseer:interval=3",
    "taylorseer:interval=3,granularity=last_block",
]


def alone(name, spec):
    """On one rank: result, actions and errors."""
    pipe, call = build(name)
    ditaccel.accelerate(pipe, spec)
    result = generate(pipe, call)
    calls = ditaccel.report(pipe).calls
    return result, [c.action for c in calls], [c.error for c in calls]


def in_the_middle(name, spec):
    """A threshold between the errors that this spec sees, where ranks are likeliest to differ."""
    if "{threshold}" not in spec:
        return spec
    low = alone(name, spec.format(threshold=1e-9))[2]
    errors = sorted({e for e in low if e is not None})
    # error control takes a gap of two where its error meets the tolerance with room to spare
    room = 2.0 if spec.startswith("adaptive") else 1.0
    return spec.format(threshold=f"{room * median(errors):.6e}")


@pytest.fixture(scope="module", params=[0, pytest.param(1, marks=pytest.mark.slow)])
def both_ranks(request, tmp_path_factory):
    """Jobs, and what each rank made of them: every method on one model, then on the other."""
    folder = tmp_path_factory.mktemp("ranks")
    jobs = [("flux", "", "before"), ("wan", "", "before")]
    for i, spec in enumerate(SPECS):
        name = ("flux", "wan")[(i + request.param) % 2]
        jobs.append((name, in_the_middle(name, spec), ("before", "after")[i // 2 % 2]))
    return jobs, two_ranks.on_both(jobs, folder)


def test_two_ranks_decide_as_one(both_ranks):
    """No rank waits for another, and both do what one rank with all tokens does."""
    jobs, results = both_ranks
    forecasts = 0
    for (name, spec, order), one, other in zip(jobs, *results, strict=True):
        what = f"{name}, {spec}, split {order} accelerate"
        assert torch.equal(one["result"], other["result"]), what
        assert one["actions"] == other["actions"] and one["errors"] == other["errors"], what
        assert one["repeats"] and other["repeats"], what
        torch.testing.assert_close(one["dense"], other["dense"], rtol=0, atol=0)
        if not spec:
            pipe, call = build(name)
            torch.testing.assert_close(one["result"], generate(pipe, call), rtol=1e-4, atol=1e-4)
            continue
        result, actions, errors = alone(name, spec)
        assert one["actions"] == actions and set(actions) == {"compute", "forecast"}, what
        torch.testing.assert_close(one["result"], result, rtol=1e-4, atol=1e-4)
        for here, there in zip(one["errors"], errors, strict=True):
            assert (here is None) == (there is None)
            assert here is None or here == pytest.approx(there, rel=1e-3), what
        forecasts += actions.count("forecast")
    assert forecasts > 20


class FakeGroup:
    """Two ranks of which this is the second; the other one's values are given."""

    def __init__(self, monkeypatch, others):
        import torch.distributed as dist

        monkeypatch.setattr(dist, "get_world_size", lambda group: 2)
        monkeypatch.setattr(dist, "get_rank", lambda group: 1)

        def all_reduce(values, op, group):
            combine = torch.add if op == dist.ReduceOp.SUM else torch.maximum
            values.copy_(combine(values, others))

        monkeypatch.setattr(dist, "all_reduce", all_reduce)


def test_sums_and_maxima_of_ranks(monkeypatch):
    from ditaccel.caching.engine.forecast import relative_l1

    expected, actual = torch.randn(2, 8, 3), torch.randn(2, 8, 3)
    for per_sample in (False, True):
        whole = relative_l1(expected, actual, per_sample)
        dims = (1, 2) if per_sample else (0, 1, 2)
        first = [x[:, :3].abs().sum(dims) for x in (expected - actual, actual)]
        ranks = Ranks(FakeGroup(monkeypatch, torch.stack(first)))
        split = relative_l1(expected[:, 3:], actual[:, 3:], per_sample, ranks)
        torch.testing.assert_close(split, whole)
    ranks = Ranks(FakeGroup(monkeypatch, torch.tensor(2.0)))
    assert float(ranks.largest(torch.tensor(1.0))) == 2
    assert float(ranks.largest(torch.tensor(float("nan")))) == float("inf")
    tokens = torch.arange(7)[None, :, None]
    assert ranks.part(tokens).flatten().tolist() == [4, 5, 6]


def by_config(transformer):
    transformer._parallel_config = ContextParallelConfig(ulysses_degree=2)


def by_processors(transformer):
    for module in transformer.modules():
        if hasattr(getattr(module, "processor", None), "_parallel_config"):
            module.processor._parallel_config = ContextParallelConfig(ring_degree=2)


def by_hooks(transformer):
    block = transformer.get_submodule("blocks.0" if hasattr(transformer, "blocks") else "")
    registry = HookRegistry.check_if_exists_or_initialize(block)
    registry.register_hook(ModelHook(), "cp_input---blocks.0")


@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
@pytest.mark.parametrize("split", [by_config, by_processors, by_hooks])
def test_what_is_split_without_a_process_group_is_refused_and_left_alone(make, split):
    pipe, _ = make()
    split(pipe.transformer)
    before = traces(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        ditaccel.accelerate(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        ditaccel.tune(pipe, ["a"], ditaccel.Target(computed_share=0.5))
    assert traces(pipe) == before


@pytest.mark.parametrize("split", [by_config, by_processors, by_hooks])
def test_splitting_after_accelerate_is_seen_by_the_next_generation(split):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe)
    generate(pipe, call)
    split(pipe.transformer)
    with pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
        generate(pipe, call)
    ditaccel.restore(pipe)


def test_a_bare_transformer_is_refused_at_every_call():
    """The second call has the timestep of the first, and would pass for its second branch."""
    pipe, call = tiny_wan()
    transformer = pipe.transformer
    ditaccel.accelerate(transformer, "taylorseer:interval=2")
    by_config(transformer)
    for _ in range(2):
        with torch.no_grad(), pytest.raises(ditaccel.UnsupportedError, match=MESSAGE):
            transformer(torch.randn(1, 4, 2, 8, 8), torch.tensor([900.0]), call["prompt_embeds"])
    ditaccel.restore(transformer)


def set_up(transformer, **degrees):
    """As if by `enable_parallelism`, without its effect on tokens."""
    config = ContextParallelConfig(**(degrees or {"ulysses_degree": 2}))
    config._flattened_mesh = type("Mesh", (), {"get_group": lambda self: "group"})()
    transformer._parallel_config = config


def test_what_sees_parts_of_a_sequence_only_is_refused():
    pipe, call = tiny_wan()
    set_up(pipe.transformer)
    with pytest.raises(ditaccel.UnsupportedError, match="where tune cannot work"):
        ditaccel.tune(pipe, ["a"], ditaccel.Target(computed_share=0.5))
    ditaccel.accelerate(pipe, "confidence_gated_taylor:basis=auto")
    with pytest.raises(ditaccel.ConfigError, match="basis='auto' chooses by what each rank sees"):
        generate(pipe, call)
    ditaccel.restore(pipe)


def test_attention_methods_are_refused_where_keys_go_around_a_ring():
    pipe, call = tiny_wan()
    whole = {m.name for m in ditaccel.doctor(pipe).methods if m.reason}
    ditaccel.accelerate(pipe, "svg2")
    set_up(pipe.transformer, ring_degree=2)
    line = r"transformer has ring attention \(ring_degree=2\), where a rank never sees all keys"
    with pytest.raises(ditaccel.UnsupportedError, match=line):
        generate(pipe, call)  # split after accelerate
    ditaccel.restore(pipe)
    for setting in ("lite_attention", "taylorseer & svg2"):
        with pytest.raises(ditaccel.UnsupportedError, match=line):
            ditaccel.accelerate(pipe, setting)
    inside = {name for name, kind in configs.methods().items() if kind.kind != "cache"}
    ring = {m.name for m in ditaccel.doctor(pipe).methods if m.reason}
    # what applies nowhere without more (no maps, no given images) is refused here as anywhere
    assert ring - whole == inside - whole and whole < ring
    pipe, _ = tiny_wan()
    set_up(pipe.transformer)
    calls = {name for name, kind in configs.methods().items() if kind.kind == "calls"}
    assert {m.name for m in ditaccel.doctor(pipe).methods if m.reason} == whole | calls


def test_whole_pipelines_are_not_refused():
    for make in (tiny_dit, tiny_wan, tiny_flux):
        pipe, _ = make()
        ditaccel.restore(ditaccel.accelerate(pipe))
