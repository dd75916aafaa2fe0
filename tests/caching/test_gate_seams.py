"""A gate is shown what it declares to need, the very tensors of a dense run, and nothing is left.

The gates here are thrown away after the test: each has the needs of a published method that is to
fit without a change of the hooks: EasyCache and TeaCache here, DBCache and PAB in
`test_gate_seams_inside.py`.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
import torch
from ditaccel.pipelines import adapters
from inspection import Watched, on, traces, unchanged
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel import AccelerationConfig
from ditaccel.caching.engine.forecast import relative_l1
from ditaccel.caching.engine.gate import Gate, StepRules
from ditaccel.caching.engine.state import Verdict
from ditaccel.caching.engine.targets import TARGETS, OutputTarget, target
from ditaccel.core.outputs import join
from ditaccel.core.reasons import Reason
from ditaccel.sessions.session import Session

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


def test_what_a_gate_remembers_counts_against_the_budget(beyond_latents):
    pipe, call = tiny_wan()
    size = generate(pipe, call).nbytes
    for memory, fits in ((5 * size, True), (4 * size, False)):
        options = {"order": 0, "target": beyond_latents, "memory_budget": memory}
        config = on(LatentsGate(0.6), guidance="follow", **options)
        with ditaccel.accelerated(pipe, cache=config):
            if fits:
                generate(pipe, call)
                assert ditaccel.report(pipe).cache_bytes == 5 * size
                continue
            with pytest.raises(ditaccel.ConfigError, match="over the budget"):
                generate(pipe, call)


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


ADAPTIVE = ["dit", "flux", "sd3", "cogvideox", "cogview4", "cosmos", "hunyuan_dit", "mochi"]


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


@pytest.mark.parametrize("name", ["flux2", "stable_audio", "qwen_image"])
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
    adapter = adapters()["chroma"]
    double, single = adapter.blocks
    contract = replace(adapter, blocks=(replace(double, modulation="norm1"), single))
    config = AccelerationConfig(cache=on(ModulatedGate(0.1)))
    session = Session(pipe, {"transformer": pipe.transformer}, config, adapter=contract)
    with pytest.raises(ditaccel.UnsupportedError, match="takes what its block has made"):
        generate(pipe, call)
    session.restore()


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


# -- a decision that is not a number --


@dataclass
class BrokenGate(Gate):
    """Measures an error that is not finite."""

    error: float

    def before(self, step, state):
        return Verdict(False, Reason.NON_FINITE, self.error)


@pytest.mark.parametrize("error", [float("nan"), float("inf")])
def test_an_error_that_is_not_finite_is_warned_of_and_is_null_in_json(error):
    pipe, call = tiny_wan()
    with (
        ditaccel.accelerated(pipe, cache=on(BrokenGate(error), rules=StepRules(warmup=1))),
        pytest.warns(UserWarning, match="non-finite features at step 1"),
    ):
        generate(pipe, call, num_inference_steps=4)
        found = ditaccel.report(pipe)
    assert "NaN" not in found.to_json() and "Infinity" not in found.to_json()
