"""Seconds inside of transformer calls, as the pipeline sees them, on a clock that a test winds."""

from types import SimpleNamespace

import pytest
import torch
from ditaccel.eval.comparison.sampler import Sampler
from ditaccel.eval.measure import counting, memory
from ditaccel.eval.measure.counting import counted
from ditaccel.eval.options import Options
from ditaccel.eval.peers.base import Situation, peer_options, with_peer
from ditaccel.eval.report.page import markdown_table, write_report
from ditaccel.eval.runs import evaluate

import ditaccel
from ditaccel.caching.engine.hooks import BlockCache
from ditaccel.io.files import read_json, read_lines

STEPS = 6
BLOCK, FORECAST, SCHEDULER = 2.0, 0.25, 10.0


@pytest.fixture
def wound(pipelines, monkeypatch):
    """A pipeline of three blocks whose parts take the seconds above, and nothing else any."""
    now = SimpleNamespace(seconds=0.0)
    monkeypatch.setattr(counting, "time", SimpleNamespace(perf_counter=lambda: now.seconds))
    pipe, call = pipelines["dit"]

    def takes(seconds):
        def hook(*_):
            now.seconds += seconds

        return hook

    handles = [
        block.attn1.to_out[0].register_forward_hook(takes(BLOCK))
        for block in pipe.transformer.transformer_blocks
    ]
    replayed = BlockCache.replayed

    def slow_replay(self, call):
        output = replayed(self, call)
        now.seconds += FORECAST * (output is not None)
        return output

    monkeypatch.setattr(BlockCache, "replayed", slow_replay)
    yield SimpleNamespace(pipe=pipe, sampler=Sampler(pipe, call, STEPS), now=now)
    for handle in handles:
        handle.remove()


@pytest.fixture
def slow_scheduler(wound):
    """Steps of the scheduler take seconds too, but not those of copies, on which peers run."""
    scheduler = wound.pipe.scheduler
    step = scheduler.step

    def slow_step(*args, **kwargs):
        wound.now.seconds += SCHEDULER
        return step(*args, **kwargs)

    scheduler.step = slow_step
    yield
    del scheduler.step


def tallied(wound, pipe=None):
    pipe = pipe or wound.pipe
    with counted(pipe) as tally:
        wound.sampler.generate(pipe, "b", 0)
    return tally


@pytest.mark.usefixtures("slow_scheduler")
def test_dense_counts_its_calls_and_not_the_scheduler(wound):
    tally = tallied(wound)
    assert tally.denoiser_seconds == STEPS * 3 * BLOCK
    assert tally.denoise_seconds == STEPS * 3 * BLOCK + (STEPS - 1) * SCHEDULER
    assert [call.seconds for call in tally.calls] == [3 * BLOCK] * STEPS


@pytest.mark.usefixtures("slow_scheduler")
def test_a_forecast_counts_with_what_it_costs(wound):
    config = "adaptive_taylor:tolerance=1e9,max_interval=2,warmup=2"
    with ditaccel.accelerated(wound.pipe, config):
        tally = tallied(wound)
        actions = [call.action for call in ditaccel.report(wound.pipe).calls]
    seconds = {"compute": 3 * BLOCK, "forecast": FORECAST}
    assert "forecast" in actions
    assert [call.seconds for call in tally.calls] == [seconds[action] for action in actions]
    assert tally.denoiser_seconds == sum(seconds[action] for action in actions)


def test_peers_are_timed_alike(wound):
    options = peer_options("first_block_cache", (("threshold", "1e9"),))
    situation = Situation(STEPS, 1, print)
    with with_peer("first_block_cache", wound.pipe, options, situation, None) as twin:
        tally = tallied(wound, twin)
    # one whole step, then the first block alone
    assert tally.denoiser_seconds == 3 * BLOCK + (STEPS - 1) * BLOCK


def test_a_call_that_raises_has_no_seconds_and_leaves_nothing(wound):
    transformer = wound.pipe.transformer
    before = dict(vars(type(transformer)))
    ends = transformer.register_forward_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), counted(wound.pipe) as tally:
        wound.sampler.generate(wound.pipe, "b", 0)
    ends.remove()
    assert len(tally.calls) == 1 and tally.denoiser_seconds is None
    assert dict(vars(type(transformer))) == before


def test_two_transformers_one_a_kind_of_the_other_count_once():
    class Part(torch.nn.Module):
        def forward(self, x, timestep=None):
            return x

    class Special(Part):
        def __call__(self, *args, **kwargs):
            return super().__call__(*args, **kwargs)

    own = Special.__call__
    pipe = SimpleNamespace(components={"transformer": Part(), "transformer_2": Special()})
    with counted(pipe) as tally:
        pipe.components["transformer"](1, timestep=5.0)
        pipe.components["transformer_2"](1, 4.0)
        Special()(1)
    found = [(call.transformer, call.timestep) for call in tally.calls]
    assert found == [("transformer", 5.0), ("transformer_2", 4.0)]
    assert Special.__call__ is own and "__call__" not in vars(Part)


@pytest.fixture(scope="module")
def run(model_folder, tmp_path_factory):
    patch = pytest.MonkeyPatch()
    patch.setattr(memory, "live_tensor_bytes", lambda: 0)
    configs = ["taylorseer:interval=2", "peer/first_block_cache:threshold=1e9"]
    options = Options(fewer=[3], features="none", quiet=True)
    folder = tmp_path_factory.mktemp("run") / "out"
    evaluate(str(model_folder), configs, ["b"], [0, 1], folder, options)
    patch.undo()
    return folder


def test_every_row_has_them(run):
    lines, summary = read_lines(run / "results.jsonl"), read_json(run / "summary.json")
    assert {line["config"] for line in lines} == set(summary["configs"])
    for line in lines:
        assert 0 < line["timing"]["denoiser"] <= line["denoise_seconds"] <= line["seconds"]
    for row in summary["configs"].values():
        if row["denoiser_speedup"] is not None:  # a busy machine leaves no undisturbed pair
            wanted = row["denoiser_speedup"]["median"] * row["computed_share"]
            assert row["denoiser_efficiency"] == pytest.approx(wanted)
    assert summary["configs"]["dense"]["denoiser_efficiency"] == 1.0
    text = write_report(run).read_text()
    assert ">efficiency<" in text and ">denoiser efficiency<" in text
    assert "efficiency" not in markdown_table(run)
