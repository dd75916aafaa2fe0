"""Attention that does not pay stays dense: judged by densities alone, at once or a step later."""

import itertools
import warnings

import pytest
import torch
from tiny import FAMILIES, generate, peaked

import ditaccel
from ditaccel import LiteAttentionConfig, SLAConfig, SVG2Config
from ditaccel.attention.engine import payoff
from ditaccel.attention.engine.payoff import RESTS, LayerState, Reading

SMALL = {"min_tokens": 0, "q_tile": 16, "k_tile": 16}


def _rows(pipe):
    return [r for r in ditaccel.report(pipe).attention[0].rows() if r["branch"] == "cond"]


def test_each_pause_is_twice_as_long():
    state, begins = LayerState(()), []
    for step in range(100):
        if state.paused(step) is None:
            begins.append(step)
            state.begin_pause(step, torch.tensor(1.0), promised=False)
    gaps = [b - a for a, b in itertools.pairwise(begins)]
    assert gaps[:3] == [RESTS + 1, 2 * RESTS + 1, 4 * RESTS + 1]


def test_planning_counts_unless_the_user_decides():
    assert LiteAttentionConfig().planner().pays_below == pytest.approx(0.7 * 0.97)
    assert SVG2Config().planner().pays_below == pytest.approx(0.7 * 0.92)
    assert SVG2Config(break_even=0.8).planner().pays_below == 0.8
    assert SLAConfig(break_even=1.0).planner().pays_below == 1.0


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def test_a_reading_is_the_number(device):
    assert float(Reading(torch.tensor(0.25, device=device)).read()) == 0.25


def test_where_a_density_is_read_later_the_last_dense_step_looks_ahead(monkeypatch):
    monkeypatch.setattr(payoff, "_READABLE", ())
    pipe, call = FAMILIES["wan"]()
    dense = generate(pipe, call)
    config = LiteAttentionConfig(threshold=-20.0, dense_steps=2, **SMALL)
    with (
        ditaccel.accelerated(pipe, attention=config),
        pytest.warns(UserWarning, match=r"100 % of the attention would be kept, .* below 68 %"),
    ):
        assert torch.equal(generate(pipe, call), dense)
        reasons = {(r["step"] < 2, r["reason"]) for r in _rows(pipe)}
    assert reasons == {(True, "dense first steps"), (False, "rests: not sparse enough to pay")}


def test_where_a_density_is_read_later_a_full_map_rests_from_the_next_step_on(monkeypatch):
    monkeypatch.setattr(payoff, "_READABLE", ())
    pipe, call = FAMILIES["wan"]()
    config = SVG2Config(
        top_p=1.0, q_clusters=4, k_clusters=8, min_tokens=0, dense_steps=1, dense_layers=0
    )
    with ditaccel.accelerated(pipe, attention=config), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        generate(pipe, call, num_inference_steps=5)
        rows = _rows(pipe)
    sparse = {r["step"] for r in rows if "clusters" in r["reason"]}
    # half-way it gives up
    assert sparse == {1} and {r["step"]: r["reason"] for r in rows if r["step"] > 1} == {
        2: "rests: not sparse enough to pay",
        3: "turned off",
        4: "turned off",
    }


def test_what_pays_goes_on_and_is_the_same_wherever_it_is_read(monkeypatch):
    pipe, call = peaked("wan")
    config = LiteAttentionConfig(threshold=-0.5, retest=0, **SMALL)
    with ditaccel.accelerated(pipe, attention=config):
        at_once = generate(pipe, call)
        rows = _rows(pipe)
    monkeypatch.setattr(payoff, "_READABLE", ())
    with ditaccel.accelerated(pipe, attention=config):
        assert torch.equal(generate(pipe, call), at_once)
        assert [r["reason"] for r in _rows(pipe)] == [r["reason"] for r in rows]
    assert min(r["density"] for r in rows) < 0.6
