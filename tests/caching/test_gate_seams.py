"""A gate is shown what it declares to need, the very tensors of a dense run, and nothing is left.

The gates here are thrown away after the test: each has the needs of a published method that is to
fit without a change of the hooks (EasyCache, TeaCache, DBCache with F > 1, PAB).
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from inspection import Watched, traces
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel.caching.forecast import relative_l1
from ditaccel.caching.gate import FirstBlockGate, Gate, StepRules
from ditaccel.caching.policy import CachePolicy
from ditaccel.caching.state import Verdict
from ditaccel.caching.targets import TARGETS, OutputTarget, target
from ditaccel.config import CacheConfig
from ditaccel.core.outputs import join
from ditaccel.core.reasons import Reason


@dataclass(frozen=True, kw_only=True)
class ThrownAway(CacheConfig):
    """A policy as the config of a method that no registry knows."""

    method = "thrown_away"
    made: Any = None

    def policy(self) -> CachePolicy:
        return self.made


def on(gate: Gate, **options: Any) -> ThrownAway:
    """The config of a gate."""
    return ThrownAway(made=CachePolicy(gate=gate, **options))


def unchanged(pipe: Any, call: Any, dense: torch.Tensor, clean: Any, config: Any) -> None:
    """With this config a run is bit-identical, and nothing is left once it is taken off."""
    with ditaccel.accelerated(pipe, cache=config):
        assert torch.equal(generate(pipe, call), dense)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


# -- latents in and out (EasyCache) --


@dataclass
class Rate:
    """What a branch's gate of latents remembers."""

    previous: torch.Tensor | None = None
    computed: list[torch.Tensor] = field(default_factory=list)
    rate: float | None = None
    error: float = 0.0


@dataclass
class LatentsGate(Gate):
    """Accumulates how far the latents have moved, times how the output answered to that."""

    threshold: float
    needs_samples = True
    seen: dict[Any, Any] = field(default_factory=lambda: defaultdict(list))

    def memory(self) -> Rate:
        return Rate()

    def before(self, step, state):
        memory, (sample,) = state.memory, state.samples
        if memory.rate is None:
            return Verdict(False, Reason.NO_HISTORY)
        moved = (sample - memory.previous).abs().mean() / memory.computed[1].abs().mean()
        memory.error += memory.rate * float(moved)
        skips = memory.error < self.threshold
        why = Reason.BELOW_THRESHOLD if skips else Reason.ABOVE_THRESHOLD
        return Verdict(skips, why, memory.error)

    def finished(self, step, state, verdict):
        memory, (sample,) = state.memory, state.samples
        self.seen["in", step.branch].append(sample.clone())
        memory.previous = sample.clone()
        if verdict.forecast:
            assert not state.outputs
            return
        (output,) = state.outputs
        self.seen["out", step.branch].append(output.clone())
        if memory.computed:
            before, returned = memory.computed
            change = (sample - before).abs().mean().clamp_min(1e-12)
            memory.rate = float((output - returned).abs().mean() / change)
        memory.computed, memory.error = [sample.clone(), output.clone()], 0.0


@pytest.fixture
def beyond_latents(monkeypatch):
    """A target of a method's own: what the transformer adds to its latents."""
    monkeypatch.setitem(TARGETS, "beyond_latents", OutputTarget)  # taken away after the test

    @target("beyond_latents")
    class BeyondLatents(OutputTarget):
        def feature(self, call, hidden):
            return hidden - join(call.state.samples)

        def whole(self, call, feature, shape):
            return feature + join(call.state.samples)

    return "beyond_latents"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_gate_sees_latents_in_and_out_as_they_are(beyond_latents, dtype):
    pipe, call = tiny_wan()
    pipe.transformer.to(dtype)
    call = {k: v.to(dtype) if isinstance(v, torch.Tensor) else v for k, v in call.items()}
    plain = Watched()
    plain.inputs("in", pipe.transformer, "hidden_states")
    plain.outputs("out", pipe.transformer)
    dense, clean = generate(pipe, call), traces(pipe)
    seen = {key: list(values) for key, values in plain.seen.items()}
    gate = LatentsGate(0.0)
    unchanged(pipe, call, dense, clean, on(gate, order=0, target=beyond_latents))
    for key in ("in", "out"):
        for offset, branch in enumerate(("cond", "uncond")):
            pairs = zip(gate.seen[key, branch], seen[key][offset::2], strict=True)
            assert all(torch.equal(ours, theirs) for ours, theirs in pairs)
            assert {each.dtype for each in gate.seen[key, branch]} == {dtype}


def test_latents_decide_for_all_branches_and_nothing_runs(beyond_latents):
    pipe, call = tiny_wan()
    layers = Watched()
    layers.outputs("first", pipe.transformer.patch_embedding)
    layers.outputs("out", pipe.transformer)
    config = on(LatentsGate(0.6), order=0, target=beyond_latents, guidance="follow")
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=12)
        calls = ditaccel.report(pipe).calls
        held = ditaccel.report(pipe).cache_bytes
    computed = [c.step for c in calls if c.action == "compute"]
    assert 2 <= len(computed) < 12 and len(layers.seen["first"]) == len(computed)
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {0}
    # three latents of the gate and the feature of one branch
    assert held == 4 * layers.seen["out"][0].nbytes
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, num_inference_steps=12)
        calls = ditaccel.report(pipe).calls
    cond, uncond = ([c.action for c in calls if c.branch == b] for b in ("cond", "uncond"))
    assert cond == uncond and "forecast" in cond


def test_a_target_of_a_methods_own_puts_its_forecast_in_place(beyond_latents):
    """x + (output - x) of the last computed step, recomputed from the outside."""
    pipe, call = tiny_wan()
    given, latents = [], []
    inner = pipe.scheduler.step

    def step(output, time, sample, *args, **kwargs):
        given.append(output.clone())
        latents.append(sample.clone())
        return inner(output, time, sample, *args, **kwargs)

    pipe.scheduler.step = step
    gate = EveryOther()
    gate.needs_samples = True
    config = on(gate, order=0, target=beyond_latents)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=6)
        actions = [c.action for c in ditaccel.report(pipe).calls]
    assert actions == ["compute", "forecast"] * 3
    for step in (1, 3, 5):
        expected = latents[step] + (given[step - 1] - latents[step - 1])
        torch.testing.assert_close(given[step], expected)


class EveryOther(Gate):
    """Computes steps of even index."""

    def before(self, step, state):
        return Verdict(step.index % 2 == 1, Reason.BETWEEN if step.index % 2 else Reason.SCHEDULED)


# -- the modulated input of the first block (TeaCache) --


@dataclass
class Moved:
    """What a branch's gate of modulated inputs remembers."""

    previous: torch.Tensor | None = None
    error: float = 0.0


@dataclass
class ModulatedGate(Gate):
    """Accumulates how far the modulated input of the first block has moved."""

    threshold: float
    needs_modulated = True
    seen: list[torch.Tensor] = field(default_factory=list)

    def memory(self) -> Moved:
        return Moved()

    def before(self, step, state):
        memory = state.memory
        memory.error += float(relative_l1(state.modulated, memory.previous))
        skips = memory.error < self.threshold
        why = Reason.BELOW_THRESHOLD if skips else Reason.ABOVE_THRESHOLD
        return Verdict(skips, why, memory.error)

    def finished(self, step, state, verdict):
        self.seen.append(state.modulated.clone())
        state.memory.previous = state.modulated.clone()
        if not verdict.forecast:
            state.memory.error = 0.0


def first_block(pipe: Any) -> torch.nn.Module:
    transformer = pipe.transformer
    return getattr(transformer, "transformer_blocks", getattr(transformer, "blocks", [None]))[0]


ADAPTIVE = ["dit", "flux", "sd3", "cogvideox", "cogview4", "hunyuan_dit", "mochi"]


@pytest.mark.parametrize("name", ADAPTIVE)
def test_a_gate_sees_the_modulated_input_of_the_first_block(name):
    """On every call: forced ones run through the norm, the others ask it before the block runs."""
    pipe, call = FAMILIES[name]()
    plain = Watched()
    plain.outputs("norm", first_block(pipe).norm1)
    dense, clean = generate(pipe, call), traces(pipe)
    expected = list(plain.seen["norm"])
    gate = ModulatedGate(0.0)
    unchanged(pipe, call, dense, clean, on(gate, rules=StepRules(warmup=2), target="residual"))
    assert len(gate.seen) == len(expected) > 4
    assert all(torch.equal(a, b) for a, b in zip(gate.seen, expected, strict=True))


@pytest.mark.parametrize("name", ["dit", "flux", "sd3"])
def test_the_modulated_input_decides_before_any_block_runs(name):
    pipe, call = FAMILIES[name]()
    plain = Watched()
    plain.outputs("norm", first_block(pipe).norm1)
    plain.outputs("block", first_block(pipe))
    gate = ModulatedGate(1e9)
    with ditaccel.accelerated(pipe, cache=on(gate, rules=StepRules(warmup=2), order=0)):
        generate(pipe, call)
        calls = ditaccel.report(pipe).calls
    computed = sum(c.action == "compute" for c in calls)
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {0}
    assert len(plain.seen["block"]) == computed < len(calls)
    assert len(plain.seen["norm"]) == len(gate.seen) == len(calls)
    assert all(torch.equal(*pair) for pair in zip(gate.seen, plain.seen["norm"], strict=True))


@pytest.mark.parametrize("name", ["wan", "latte", "qwen_image"])
def test_a_block_without_an_adaptive_norm_is_refused_in_one_line(name):
    pipe, call = FAMILIES[name]()
    dense, clean = generate(pipe, call), traces(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match="not an adaptive norm; use") as caught:
        ditaccel.accelerate(pipe, cache=on(ModulatedGate(0.1)))
    assert "\n" not in str(caught.value)
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)


def test_a_norm_inside_a_compiled_block_is_refused():
    pipe, _ = tiny_flux()
    first_block(pipe).compile(backend="eager")
    with pytest.raises(ditaccel.UnsupportedError, match="is not seen in a compiled block"):
        ditaccel.accelerate(pipe, cache=on(ModulatedGate(0.1)))


def test_a_norm_of_what_the_block_makes_is_refused():
    pipe, call = FAMILIES["chroma"]()  # its blocks cut the modulation into parts
    ditaccel.accelerate(pipe, cache=on(ModulatedGate(0.1)))
    with pytest.raises(ditaccel.UnsupportedError, match="takes what its block has made"):
        generate(pipe, call)


# -- the first F blocks (DBCache) --


@dataclass
class BlocksGate(FirstBlockGate):
    """How far the residual of the first F blocks has moved since the last computed step."""

    seen: list[Any] = field(default_factory=list)

    def error(self, step, state, before, after):
        self.seen.append((before.clone(), after.clone()))
        return self.compared(state, after - before, state.first.newest)


def of_blocks(gate: BlocksGate, **options: Any) -> ThrownAway:
    return on(gate, target="residual", first_feature="residual", order=0, **options)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("name", ["wan", "dit"])
def test_a_gate_sees_what_the_first_blocks_make(name, count):
    pipe, call = FAMILIES[name]()
    blocks = pipe.transformer.blocks if name == "wan" else pipe.transformer.transformer_blocks
    plain = Watched()
    plain.inputs("before", blocks[0], "hidden_states")
    plain.outputs("after", blocks[count - 1])
    dense, clean = generate(pipe, call), traces(pipe)
    expected = list(zip(plain.seen["before"], plain.seen["after"], strict=True))
    gate = BlocksGate(0.0, first_blocks=count)
    unchanged(pipe, call, dense, clean, of_blocks(gate))
    branches = len(expected) // call["num_inference_steps"]
    # (the first step of each branch is forced)
    assert len(gate.seen) == len(expected) - branches
    for ours, theirs in zip(gate.seen, expected[branches:], strict=True):
        assert all(torch.equal(*pair) for pair in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("guidance", ["independent", "follow", "difference"])
@pytest.mark.parametrize("count", [1, 2, 3])
def test_a_forecast_counts_from_the_last_of_the_first_blocks(count, guidance):
    """What goes to the last norm: what block F gives now, and what the others added before."""
    pipe, call = tiny_wan()
    plain = Watched()
    plain.outputs("after", pipe.transformer.blocks[count - 1])
    plain.inputs("end", pipe.transformer.norm_out, "x")
    gate = BlocksGate(1e9, first_blocks=count)
    with ditaccel.accelerated(pipe, cache=of_blocks(gate, guidance=guidance)):
        generate(pipe, call, num_inference_steps=5)
        calls = ditaccel.report(pipe).calls
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {count}
    after, end = plain.seen["after"], plain.seen["end"]
    assert len(after) == len(end) == 10
    for index in range(2, 10):
        added = end[index % 2] - after[index % 2]
        torch.testing.assert_close(end[index], after[index] + added, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "count"),
    [("flux", 3), ("latte", 2), ("latte", 3), ("ltx2", 2), ("wan_vace", 2), ("hunyuan_video", 3)],
)
def test_the_first_blocks_may_be_of_several_kinds(name, count):
    """Text joined halfway, two layouts in turn, two streams, blocks that only give hints."""
    pipe, call = FAMILIES[name]()
    dense, clean = generate(pipe, call), traces(pipe)
    unchanged(pipe, call, dense, clean, of_blocks(BlocksGate(0.0, first_blocks=count)))
    gate = BlocksGate(1e9, first_blocks=count)
    with ditaccel.accelerated(pipe, cache=of_blocks(gate)):
        result = generate(pipe, call)
        report = ditaccel.report(pipe)
    assert report.forecasts and torch.isfinite(result).all()
    assert all(before.shape == after.shape for before, after in gate.seen)


def test_more_first_blocks_than_there_are_is_refused():
    pipe, _ = tiny_wan(layers=3)
    with pytest.raises(
        ditaccel.UnsupportedError, match=r"the first 3 blocks .* there are 3 in all"
    ):
        ditaccel.accelerate(pipe, cache=of_blocks(BlocksGate(0.1, first_blocks=3)))


# -- kinds of modules at intervals of their own (PAB) --


@dataclass
class KindsGate(Gate):
    """Each kind of attention is computed at an interval of its own."""

    intervals: dict[str, int]
    module_kinds: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.module_kinds = tuple(self.intervals)

    def before(self, step, state):
        rests = frozenset(
            kind
            for kind, interval in self.intervals.items()
            if step.index - state.computed_at.get(kind, -interval) < interval
        )
        why = Reason.BETWEEN if rests else Reason.SCHEDULED
        return Verdict(bool(rests), why, kinds=rests, detail=", ".join(sorted(rests)))


PARTS = {
    "latte": {
        "spatial": lambda t: t.transformer_blocks[1].attn1,
        "temporal": lambda t: t.temporal_transformer_blocks[1].attn1,
        "mlp": lambda t: t.transformer_blocks[1].ff,
    },
    "wan": {
        "spatial": lambda t: t.blocks[1].attn1,
        "cross": lambda t: t.blocks[1].attn2,
        "mlp": lambda t: t.blocks[1].ffn,
    },
    "flux": {
        "spatial": lambda t: t.transformer_blocks[1].attn,
        "mlp": lambda t: t.transformer_blocks[1].ff,
    },
}


@pytest.mark.parametrize("name", PARTS)
def test_each_kind_of_module_has_an_interval_of_its_own(name):
    pipe, call = FAMILIES[name]()
    call = {**call, "num_inference_steps": 8}
    plain = Watched()
    for kind, part in PARTS[name].items():
        plain.outputs(kind, part(pipe.transformer))
    dense, clean = generate(pipe, call), traces(pipe)
    calls_per_step = len(plain.seen["mlp"]) // 8
    unchanged(pipe, call, dense, clean, on(KindsGate({"spatial": 1}), granularity="module"))
    plain.seen.clear()
    intervals = {"spatial": 2, "temporal": 3, "cross": 4}
    config = on(KindsGate(intervals), granularity="module", order=0)
    with ditaccel.accelerated(pipe, cache=config):
        result = generate(pipe, call)
        calls = ditaccel.report(pipe).calls
    assert not torch.equal(result, dense) and torch.isfinite(result).all()
    for kind, outputs in plain.seen.items():
        computed = 8 if kind == "mlp" else -(-8 // intervals[kind])
        assert len(outputs) == computed * calls_per_step, kind
    shares = {c.step: c.share for c in calls}
    assert shares[0] == 1.0 and 0.0 < min(shares.values()) < 1.0
    assert [c.action for c in calls if c.step == 1] == ["forecast"] * calls_per_step
    assert all("spatial" in c.reason for c in calls if c.step % 2 and c.action == "forecast")


def test_a_module_that_rests_gives_what_it_gave_before():
    pipe, call = tiny_wan()
    block = pipe.transformer.blocks[1]
    plain = Watched()
    plain.inputs("before", block.norm2, "x")  # the hidden state to which attention is added
    plain.inputs("after", block.norm3, "x")
    plain.outputs("attention", block.attn2)
    config = on(KindsGate({"cross": 2}), granularity="module", order=0)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call, guidance_scale=1.0, num_inference_steps=4)
    before, after, attention = (plain.seen[key] for key in ("before", "after", "attention"))
    assert len(attention) == 2 and len(before) == len(after) == 4
    for step in range(4):
        torch.testing.assert_close(after[step], before[step] + attention[step // 2])


def test_kinds_need_modules_and_modules_of_such_a_kind():
    with pytest.raises(ditaccel.ConfigError, match="give granularity='module'"):
        on(KindsGate({"spatial": 2}))
    pipe, _ = tiny_flux()
    with pytest.raises(ditaccel.UnsupportedError, match="no modules of the kind temporal"):
        ditaccel.accelerate(pipe, cache=on(KindsGate({"temporal": 2}), granularity="module"))


# -- a loop that a gate refuses --


class Refusing(EveryOther):
    """Works in no loop of less than 100 steps."""

    def check(self, step):
        if step.total is None or step.total < 100:
            raise ditaccel.ConfigError(f"{step.total} steps are too few; give 100 or more")


def test_a_loop_is_refused_at_its_first_call_in_one_line():
    pipe, call = tiny_wan()
    dense, clean = generate(pipe, call), traces(pipe)
    plain = Watched()
    plain.outputs("first", pipe.transformer.patch_embedding)
    with (
        ditaccel.accelerated(pipe, cache=on(Refusing())),
        pytest.raises(ditaccel.ConfigError, match=r"^8 steps are too few; give 100 or more$"),
    ):
        generate(pipe, call)
    assert not plain.seen
    plain.remove()
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)
