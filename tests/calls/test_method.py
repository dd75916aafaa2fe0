"""A call method of somebody's own: known, combined, reported and undone like ours."""

from dataclasses import dataclass

import pytest
import torch
from tiny import FAMILIES, generate

import ditaccel
from ditaccel.calls.engine.method import CallLog, CallMethod
from ditaccel.config import CallConfig, method, methods, parse_spec, registry, spec_of
from ditaccel.core.outputs import tensors_of, with_tensors
from ditaccel.sessions.session import session_of


@pytest.fixture
def halved(monkeypatch):
    """A method that halves what the transformer returns at the last step."""
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))

    class Halving(CallMethod):
        def attach(self, site, ledger):
            self.site, self.log = site, CallLog(site.name, "halved", "of the output stayed")

        def carry_out(self, call):
            output = call.dense()
            self._states[call.step.branch] = call.step.index
            self.changed |= call.step.is_last
            self.log.add(call.step.is_last, 0.5 if call.step.is_last else 1.0)
            (made,) = tensors_of(output)
            return with_tensors(output, [made / 2 if call.step.is_last else made])

    @method("halved")
    @dataclass(frozen=True, kw_only=True)
    class HalvedConfig(CallConfig):
        """Halves the last output."""

        strength: int = 1

        def call_method(self):
            return Halving()

    return HalvedConfig


def test_it_is_known_by_name_and_survives_text_and_files(halved, tmp_path):
    assert methods()["halved"] is halved
    config = parse_spec("taylorseer:interval=3 & halved:strength=2")
    assert config.calls == halved(strength=2) and config.cache is not None
    assert spec_of(config) == "taylorseer:interval=3 & halved:strength=2"
    config.save(tmp_path / "mine.yaml")
    assert ditaccel.AccelerationConfig.load(tmp_path / "mine.yaml") == config
    assert "calls:\n  method: halved" in (tmp_path / "mine.yaml").read_text()


def test_it_runs_is_reported_diagnosed_and_undone(halved):
    pipe, call = FAMILIES["dit"]()
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, calls=halved())
    assert not torch.equal(generate(pipe, call), dense)
    (log,) = ditaccel.report(pipe).last_generation().call_logs
    assert (log.calls, log.changed) == (call["num_inference_steps"], 1)
    assert f"halved changed 1 of {log.calls} calls" in str(ditaccel.report(pipe))
    assert f"halved changed 1 of {log.calls} calls" in ditaccel.report(pipe)._repr_html_()
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)
    told = str(ditaccel.doctor(pipe, config="halved"))
    assert "Method halved (calls): works" in told


@pytest.mark.parametrize("cache", ["", "step_mask:steps=[0,1,2],total=4,target=output & "])
def test_state_is_freed_with_the_last_step(halved, cache):
    pipe, call = FAMILIES["dit"]()
    call = {**call, "num_inference_steps": 4}
    ditaccel.accelerate(pipe, f"{cache}halved")
    carried = session_of({"transformer": pipe.transformer}).calls["transformer"]
    generate(pipe, call)
    assert carried.log.calls == (3 if cache else 4)
    assert carried._states == {}


def test_mistakes_are_one_line(halved):
    pipe, _ = FAMILIES["dit"]()
    with pytest.raises(ditaccel.ConfigError, match=r"config of a call method: write calls=Halved"):
        ditaccel.accelerate(pipe, cache=halved())
    with pytest.raises(ditaccel.ConfigError, match="are both call methods"):
        ditaccel.accelerate(pipe, "halved & token_merging")
    with pytest.raises(ditaccel.ConfigError, match=r"has no method call_method\(\)"):

        @method("other")
        @dataclass(frozen=True)
        class Other(CallConfig):
            """Nothing."""
