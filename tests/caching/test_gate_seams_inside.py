"""Gates that look inside: at the first F blocks (DBCache), at kinds of modules (PAB).

They are thrown away after the test; see `test_gate_seams.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from inspection import ThrownAway, Watched, on, traces, unchanged
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel.caching.engine.gate import FirstBlockGate, Gate
from ditaccel.caching.engine.state import Verdict
from ditaccel.core.reasons import Reason

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
