"""`ditaccel bench maps`: density, mass and error of every map, from queries recorded once."""

from __future__ import annotations

import argparse
import csv
import json
from dataclasses import dataclass, replace
from typing import ClassVar

import pytest
import torch
from ditaccel.eval.bench import maps
from ditaccel.eval.bench.maps import choice, command, curves, points, records
from ditaccel.eval.bench.maps.measure import kept_mass, kept_pairs, measure
from ditaccel.eval.bench.overhead import Clock
from ditaccel.eval.bench.shared import Subject
from ditaccel.kernels import TileMap, Tiling
from tiny import tiny_wan

from ditaccel import cli, config
from ditaccel.attention.engine.options import FixedTileOptions, Swept
from ditaccel.attention.engine.order import OrderPerHead
from ditaccel.attention.engine.planner import LayerContext, Plan
from ditaccel.attention.engine.tile_planner import MaskPlanner
from ditaccel.config import registry
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.errors import UsageError

HEADS, LENGTH, WIDTH, SCALE = 4, 75, 8, 0.4


@pytest.fixture(autouse=True)
def methods_as_they_were(monkeypatch):
    config.methods()
    monkeypatch.setattr(registry, "_METHODS", dict(registry._METHODS))


def band():
    """A method whose map is known: tiles at most `width` away from the diagonal."""

    @config.method("band")
    @dataclass(frozen=True, kw_only=True)
    class BandConfig(FixedTileOptions):
        swept: ClassVar[Swept] = Swept("width", (0, 1, 9))
        width: int = 1
        q_tile: int | None = 16
        k_tile: int | None = 16

        def planner(self):
            return BandPlanner(self)

    class BandPlanner(MaskPlanner):
        def mask(self, q, k, v, scale, context, state):
            rows, columns = (torch.arange(t.tiles) for t in self.tilings(q, k, context))
            return (rows[:, None] - columns).abs() <= self.config.width

    return BandConfig


def context(index=3, branch="cond", **changes):
    step = DenoisingStep(0, index, branch, 500.0, sigma=0.5, total=10)
    return LayerContext(step, 1, 4, LENGTH, **changes)


def call(seed=0, index=3, **changes):
    generator = torch.Generator().manual_seed(seed)
    q, k, v = (torch.randn(1, h, LENGTH, WIDTH, generator=generator) for h in (HEADS, 2, 2))
    at = context(index, **changes)
    dense = records.dense_attention(q, k, v, SCALE, at.key_mask)
    return records.Call(q, k, v, SCALE, at, 0, *dense)


def softmax(one):
    """Attention weights in float64, `(1, H, L, L)`."""
    keys = one.k.double().repeat_interleave(HEADS // one.k.shape[1], 1)
    scores = one.q.double() @ keys.mT * SCALE
    if one.context.key_mask is not None:
        scores = scores.masked_fill(~one.context.key_mask[:, None, None], -torch.inf)
    return scores.softmax(-1)


@pytest.mark.parametrize("padded", [0, 9])
def test_density_mass_and_error_are_those_worked_out_token_by_token(padded):
    mask = torch.arange(LENGTH)[None] < LENGTH - padded if padded else None
    one = call(key_mask=mask)
    tiles = torch.arange(LENGTH) // 16
    kept = ((tiles[:, None] - tiles).abs() <= 1).double()
    weights = softmax(one)
    values = one.v.double().repeat_interleave(2, 1)
    exact = weights @ values
    assert torch.allclose(exact, one.dense, atol=1e-12)
    out = (weights * kept / (weights * kept).sum(-1, keepdim=True)) @ values
    chosen = replace(band()(), rest="nothing", min_tokens=0, dense_steps=0, break_even=1.0)
    found = measure(chosen, [one], Clock.of(torch.device("cpu")))
    assert found["density"] == pytest.approx(float(kept.mean()), abs=1e-9)
    assert found["mass"] == pytest.approx(float((weights * kept).sum(-1).mean()), abs=1e-5)
    error = float((out - exact).norm() / exact.norm())
    assert found["error"] == pytest.approx(error, rel=1e-4)
    per_head = (out - exact).square().sum((0, 2, 3)) / exact.square().sum()
    assert found["layers"]["/1"]["error"] == pytest.approx(per_head.tolist(), rel=1e-4)
    assert found["calls"] == 1 and found["overlap"] is None
    whole = measure(replace(chosen, width=9), [one], Clock.of(torch.device("cpu")))
    assert whole["density"] == 1.0 and whole["error"] < 1e-6
    assert whole["mass"] == pytest.approx(1.0, abs=1e-5)


def test_maps_with_an_order_per_head_are_compared_by_tokens():
    one = call()
    generator = torch.Generator().manual_seed(1)
    q_order, k_order = (
        torch.stack([torch.randperm(LENGTH, generator=generator) for _ in range(n)])[None].int()
        for n in (HEADS, 2)
    )
    mask = torch.rand(1, HEADS, 5, 5, generator=generator) < 0.5
    mask[..., 0] = True
    tiling = Tiling.fixed(LENGTH, 16)
    tile_map = TileMap.from_mask(mask, tiling, tiling)
    plan = Plan(tile_map, "test", order=OrderPerHead(q_order, k_order))
    tokens = torch.zeros(1, HEADS, LENGTH, LENGTH, dtype=torch.bool)
    for h in range(HEADS):
        for i, query in enumerate(q_order[0, h].tolist()):
            for j, key in enumerate(k_order[0, h // 2].tolist()):
                tokens[0, h, query, key] = mask[0, h, i // 16, j // 16]
    some, others = torch.tensor([3, 70, 12]), torch.tensor([0, 74, 33, 8])
    assert torch.equal(kept_pairs(plan, one, some, others), tokens[:, :, some][..., others])
    mass = (softmax(one) * tokens).sum(-1)
    assert torch.allclose(kept_mass(plan, one), mass, atol=1e-5)


def test_neighbouring_steps_overlap_and_state_is_carried_from_step_to_step():
    seen = []

    @config.method("turns")
    @dataclass(frozen=True, kw_only=True)
    class TurnsConfig(FixedTileOptions):
        q_tile: int | None = 16
        k_tile: int | None = 16

        def planner(self):
            return TurnsPlanner(self)

    class TurnsPlanner(MaskPlanner):
        def mask(self, q, k, v, scale, context, state):
            state["turn"] = state.get("turn", -1) + 1
            seen.append((context.step.index, context.step.branch, state["turn"]))
            rows, columns = (t.tiles for t in self.tilings(q, k, context))
            return (torch.arange(columns) % 2 == state["turn"] % 2).expand(rows, columns)

    calls = [call(i, i, branch=b) for i in (3, 4, 5) for b in ("cond", "uncond")]
    options = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    found = measure(TurnsConfig(**options), calls, Clock.of(torch.device("cpu")))
    assert seen[1:] == [(i, b, i - 3) for i in (3, 4, 5) for b in ("cond", "uncond")]
    assert found["overlap"] == 0.0  # odd tiles after even ones
    same = measure(replace(band()(), **options), calls, Clock.of(torch.device("cpu")))
    assert same["overlap"] == 1.0


def test_what_a_method_sweeps_are_options_that_it_takes():
    for name, cls in config.methods().items():
        swept = getattr(cls, "swept", None)
        if swept is None:
            continue
        assert len(swept.values) >= 2, name
        for value in swept.values:
            replace(cls(), **swept.options, **{swept.option: value})


def test_a_curve_is_read_between_its_points():
    rows = [
        {"density": 0.1, "error": 0.4, "mass": 0.5},
        {"density": 0.4, "error": 0.1, "mass": 0.9},
    ]
    curve = curves.Curve("a", "default", "means", "", tuple(rows))
    assert curve.at(0.2, "error") == pytest.approx(0.2) and curve.name == "a + means"
    assert curve.at(0.2, "mass") == pytest.approx(0.7)
    assert curve.at(0.05, "error") is None and curve.at(0.4, "error") == pytest.approx(0.1)
    worse = curves.Curve("b", "default", "nothing", "", ({**rows[0], "error": 0.8}, rows[1]))
    lines = curves.verdicts([curve, worse], [0.1, 0.9])
    assert lines[0].startswith("at 10 %: a + means (40.00 %)") and lines[0].endswith("ratio 0.50")
    assert lines[1] == "at 90 %: no curve reaches this density"


# -- the command --


def parsed(*words):
    parser = argparse.ArgumentParser()
    maps.add_arguments(parser)
    return parser.parse_args(["model", *map(str, words)])


@pytest.fixture
def bench(tmp_path, monkeypatch):
    """Runs the bench on a tiny model; counts its dense runs and what was measured."""
    pipe, arguments = tiny_wan(layers=3)
    arguments = {**arguments, "num_inference_steps": 5}
    done = {"runs": 0, "measured": []}

    def subject(args, limit, **changes):
        done["runs"] += 1
        return Subject(pipe, [arguments], "tiny")

    real = points.Measured.add

    def add(self, point, figures):
        done["measured"].append(point.spec)
        return real(self, point, figures)

    monkeypatch.setattr(command, "open_subject", subject)
    monkeypatch.setattr(command, "read_sheet", lambda model: None)
    monkeypatch.setattr(command, "prompts_for", lambda *_: ["a", "b"])
    monkeypatch.setattr(points.Measured, "add", add)
    out = tmp_path / "out"

    def run(*words):
        return command.run(parsed("--out", out, *words))

    run.done, run.out = done, out
    return run


def test_a_killed_run_resumes_where_it_was(bench, monkeypatch, capsys):
    band()
    words = ("--methods", "band", "--at", "2,3", "--layers", "0,2", "--rest", "nothing", "means")
    real = command.Measured.add

    def killed(self, point, figures):
        if len(bench.done["measured"]) == 4:
            raise KeyboardInterrupt
        return real(self, point, figures)

    with monkeypatch.context() as patch:
        patch.setattr(command.Measured, "add", killed)
        with pytest.raises(KeyboardInterrupt):
            bench(*words)
    assert bench(*words) == 0
    assert bench.done["runs"] == 1 and len(set(bench.done["measured"])) == 6
    assert len(bench.done["measured"]) == 6  # nothing was measured twice
    with (bench.out / "maps.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["rest"], r["value"]) for r in rows] == [
        (rest, value) for rest in ("nothing", "means") for value in "019"
    ]
    # two layers, two steps, two branches
    assert {r["calls"] for r in rows} == {"8"} and rows[0]["device"]
    assert float(rows[2]["density"]) == 1.0 and float(rows[2]["error"]) < 1e-5
    about = json.loads((bench.out / "maps.json").read_text())
    assert set(about["rows"][0]["layers"]) == {"transformer/0", "transformer/2"}
    assert (bench.out / "maps.png").stat().st_size > 10_000
    assert "band + means" in capsys.readouterr().out
    with pytest.raises(UsageError, match="made with another layers; name a new folder"):
        bench("--methods", "band", "--at", "2,3", "--layers", "0,1")


def test_records_keep_groups_of_heads_together_and_where_a_call_was(bench):
    q, k = torch.zeros(1, 8, 4, 2), torch.zeros(1, 4, 4, 2)
    assert records.some_heads(q, k, 5) == ([2, 3, 6, 7], [1, 3])
    assert records.some_heads(q, k, 1) == ([4, 5], [2])
    assert records.some_heads(q, k, None) == (list(range(8)), list(range(4)))
    band()
    assert bench("--methods", "band", "--rest", "nothing", "--heads", "1") == 0
    found = records.Records(bench.out / "records", {"device": "cpu"})
    assert len(found) == 3 * 3 * 2  # layers, the steps from 40 % of five on, branches
    one = found.read(0)
    assert one.q.shape[1] == 1 and one.context.step.index == 2 and one.context.step.total == 5
    assert isinstance(one.context.grid, tuple) and one.context.component == "transformer"


@pytest.mark.parametrize(
    "words, line",
    [
        (("--methods", "bond"), "methods bond: there is no such attention method"),
        (("--layers", "0,7"), "layers names layer 7, but the transformer has 3 attention layers"),
        (("--at", "5"), "at names step 5, but the run has 5: give steps from 0 to 4"),
    ],
)
def test_what_is_not_there_is_one_line(bench, words, line):
    band()
    with pytest.raises(UsageError) as caught:
        bench(*words)
    assert str(caught.value).startswith(line) and "\n" not in str(caught.value)


@pytest.mark.parametrize("share", ["0", "1.5", "-0.1", "x"])
def test_a_density_is_a_share_above_zero(share, capsys):
    with pytest.raises(SystemExit):
        cli.main(["bench", "maps", "m", "--out", "o", f"--density={share}"])
    assert "--density must be" in capsys.readouterr().err


# -- a map for each head --


def figures(spec, errors, planning, kernel, densities):
    """A row of one layer with two heads."""
    layer = {"error": errors, "density": densities}
    density = sum(densities) / 2
    row = {"method": "band", "spec": spec, "density": density, "layers": {"transformer/1": layer}}
    return {**row, "planning": planning, "kernel": kernel, "precision": "", "option": "width"}


class Recorded:
    """What a choice asks of records: four heads, those of a pair share their keys."""

    def __init__(self, heads=None):
        self.about = {"asked": {"heads": heads}}

    def read(self, number):
        return call()

    def layer_names(self):
        return [("transformer", 1)]


def test_a_choice_is_the_least_error_within_the_time():
    # cost of head pairs (0, 1) and (2, 3): a 0.1 and 0.1; b 0.5 and 0.5; c 0.2 and 0.6
    rows = [
        figures("sla:critical=0.1", [0.4, 0.4, 0.2, 0.2], 0.0, 0.1, [0.1] * 4),
        figures("sla:critical=0.5", [0.1, 0.1, 0.1, 0.1], 0.1, 0.4, [0.5] * 4),
        figures("svg2", [0.1, 0.1, 0.1, 0.2], 0.0, 0.4, [0.2, 0.2, 0.6, 0.6]),
    ]
    for row in rows:
        row["density"] = sum(row["layers"]["transformer/1"]["density"]) / 4
    best = choice.choose(rows, Recorded(), 0.5)
    assert best.heads[1] == (0, 0, 0, 0) and best.maps == ("sla:critical=0.5",)
    mixed = choice.choose(rows, Recorded(), 0.2)
    chosen = [mixed.maps[number] for number in mixed.heads[1]]
    assert chosen == ["svg2", "svg2", "sla:critical=0.1", "sla:critical=0.1"]
    assert len(mixed.heads) == 4  # layers that were not recorded have a map too
    with pytest.raises(UsageError, match=r"the cheapest maps take 0\.10 of dense attention's time"):
        choice.choose(rows, Recorded(), 0.05)
    with pytest.raises(UsageError, match="record without it"):
        choice.choose(rows, Recorded(heads=2), 0.5)


def test_the_chosen_config_is_written_and_measured(bench, capsys):
    words = ("--methods", "sla,svg2", "--at", "2,3", "--layers", "1", "--rest", "means")
    assert bench(*words, "--choose", "900") == 0
    made = config.load(bench.out / "chosen.yaml").attention
    assert len(made.heads) == 3 and made.maps
    assert "a map for each head" in capsys.readouterr().out
    rows = json.loads((bench.out / "maps.json").read_text())["rows"]
    assert rows[-1]["setting"] == "chosen" and rows[-1]["spec"] == config.method_spec(made)
    # nothing that is measured for all heads has less error
    assert rows[-1]["error"] <= min(row["error"] for row in rows) * (1 + 1e-6)
