"""Transformers of no known family: known ones, whose adapters are hidden, must be found out."""

import re

import pytest
import torch
from ditaccel.pipelines import adapters
from ditaccel.pipelines.auto import TIMESTEPS, NotRecognisedError, recognise, text_side, token_count
from inspection import traces
from tiny import FAMILIES, generate, tiny_wan
from torch import nn

import ditaccel
from ditaccel.attention.engine.runtime import AttentionRuntime
from ditaccel.core import transformers as families
from ditaccel.sessions.session import session_of

LITE = "lite_attention:min_tokens=0,q_tile=16,k_tile=16,threshold=-0.02,dense_steps=0"
# For these a dry run must find out all; of others it may say what it did not find.
SEEN_THROUGH = ("dit", "flux", "hunyuan_video", "ltx", "mochi", "qwen_image", "sd3", "wan", "wan22")


def some(names):
    """Names as parameters; those that need not be seen through are slow, minutes together."""
    return [n if n in SEEN_THROUGH else pytest.param(n, marks=pytest.mark.slow) for n in names]


REASON = (
    "a dry run did not show how its blocks work: .*(do not run|does not take|which of|returns|how"
    r" \d+ tokens|where text|which attention)|no module to forecast|calls neith"
    "|has no self-attention module"
)


@pytest.fixture
def unknown(monkeypatch):
    """No adapter is known."""
    monkeypatch.setattr(families, "adapter_for", lambda name: None)


def accelerated(pipe, spec):
    with pytest.warns(UserWarning, match="is of no family that ditaccel knows; assumed: its time"):
        ditaccel.accelerate(pipe, spec)


def found(name, pipe, call, expected):
    """Whether a dry run found all; else the error must say what it did not find."""
    try:
        assert torch.equal(generate(pipe, call), expected)
    except ditaccel.UnsupportedError as error:
        assert name not in SEEN_THROUGH and re.search(REASON, str(error)), str(error)
        return False
    return True


def learnt(pipe):
    """Contracts that the session works with, of the first transformer."""
    cache = next(iter(session_of({"transformer": pipe.transformer}).caches.values()))
    return tuple(dict.fromkeys(block.contract for block in cache.blocks))


def nameless(name):
    """Whether the timestep is an argument of the family's own, which nobody could guess."""
    return adapters()[FAMILIES[name].family].timestep not in TIMESTEPS


NAMELESS = [n for n in FAMILIES if nameless(n)]
GUESSED = [n for n in FAMILIES if not nameless(n)]
TWO_OUTPUTS = [n for n in GUESSED if adapters()[FAMILIES[n].family].second_stream is not None]


@pytest.mark.parametrize("name", NAMELESS)
def test_a_timestep_of_another_name_is_not_guessed(name, unknown):
    pipe, _ = FAMILIES[name]()
    clean = traces(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match="forward has no argument for the timestep"):
        ditaccel.accelerate(pipe, "adaptive_taylor:tolerance=1e9")
    assert traces(pipe) == clean


@pytest.mark.parametrize("name", TWO_OUTPUTS)
def test_two_outputs_are_not_taken_for_one(name, unknown):
    """A second stream of latents cannot be told from what may stay as it is (LTX 2's sound).

    MiniMax-H3's sound has noise levels of its own, which look like those of other samples.
    """
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    accelerated(pipe, "adaptive_taylor:tolerance=1e9")
    with pytest.warns(UserWarning, match="returns more than latents|different timesteps"):
        assert torch.equal(generate(pipe, call), dense)
    assert ditaccel.report(pipe).forecasts == 0


@pytest.mark.parametrize("name", some(n for n in GUESSED if n not in TWO_OUTPUTS))
def test_presets_need_nothing_inside(name, unknown):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    clean = traces(pipe)
    for tolerance, exact in (("0", True), ("1e9", False)):
        accelerated(pipe, f"adaptive_taylor:tolerance={tolerance}")
        result = generate(pipe, call)
        report = ditaccel.report(pipe)
        assert torch.equal(result, dense) == exact and torch.isfinite(result).all()
        assert (report.forecasts == 0) == exact and (report.computed_share == 1) == exact
        assert "Assumed: transformer: timestep in" in str(report)
        assert torch.equal(generate(pipe, call), result)
        ditaccel.restore(pipe)
        assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


# MiniMax-H3's noise levels look like those of several samples: nothing is forecast.
ONE_LEVEL = [n for n in GUESSED if adapters()[FAMILIES[n].family].timestep_of is None]


@pytest.mark.parametrize("name", some(ONE_LEVEL))
def test_a_dry_run_finds_the_contract_of_the_hand_written_adapter(name, unknown):
    """Then exact, skipping, repeatable and undone like any other, and equal to the known family."""
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    clean = traces(pipe)
    accelerated(pipe, "taylorseer:interval=1,granularity=last_block")
    if not found(name, pipe, call, dense):
        ditaccel.restore(pipe)
        assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)
        return
    own = adapters()[FAMILIES[name].family]
    kept = {c.container for c in learnt(pipe)}
    expected = [c for c in own.blocks if c.container in kept]
    assert expected[-1] == next(c for c in reversed(own.blocks))
    for concluded, written in zip(learnt(pipe), expected, strict=True):
        for key in ("container", "hidden", "encoder", "returns"):
            assert getattr(concluded, key) == getattr(written, key), key
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    for spec in ("confidence_gated_taylor:threshold=1e9,warmup=2", "taylorseer:interval=3"):
        accelerated(pipe, spec)
        result = generate(pipe, call)
        assert ditaccel.report(pipe).forecasts > 0 and torch.isfinite(result).all()
        assert torch.equal(generate(pipe, call), result), "the dry run left something"
        ditaccel.restore(pipe)
        assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("name", some(n for n in GUESSED if FAMILIES[n].attention))
def test_a_dry_run_finds_self_attention_and_text(name, monkeypatch):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, LITE)
    expected = generate(pipe, call)
    layers = ditaccel.report(pipe).attention[0].layers
    ditaccel.restore(pipe)
    monkeypatch.setattr(families, "adapter_for", lambda name: None)
    accelerated(pipe, LITE)
    if found(name, pipe, call, expected):
        assert ditaccel.report(pipe).attention[0].layers == layers
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


class Block(nn.Module):
    """Adds a little."""

    def __init__(self, channels=4):
        super().__init__()
        self.linear = nn.Linear(channels, channels)

    def forward(self, x, scale):
        return x + 0.1 * self.linear(x) * scale


class Plain(nn.Module):
    """A transformer of nobody's family; `route` is the order in which its blocks run."""

    def __init__(self, route="abcABC", interleave=False):
        super().__init__()
        torch.manual_seed(0)
        self.first = nn.ModuleList(Block() for _ in range(3))
        self.second = nn.ModuleList(Block() for _ in range(3))
        self.route = route

    def forward(self, x, t):
        for letter in self.route:
            part = self.first if letter.islower() else self.second
            x = part["abc".index(letter.lower())](x, t)
        return (x,)


def run(model, steps=6):
    x = torch.ones(1, 8, 4)
    with torch.no_grad():
        for i in range(steps):
            x = x - 0.1 * model(x, torch.tensor([1.0 - i / steps]))[0]
    return x


def test_a_transformer_of_ones_own():
    model = Plain()
    dense = run(model)
    accelerated(model, "taylorseer:interval=1,granularity=last_block")
    assert torch.equal(run(model), dense)
    ditaccel.restore(model)
    accelerated(model, "taylorseer:interval=2,granularity=last_block")
    assert not torch.equal(run(model), dense)
    report = ditaccel.report(model)
    assert report.forecasts == 3 and report.calls[-1].blocks_total == 6
    assert "first return x; then second return x" in str(report)
    ditaccel.restore(model)
    accelerated(model, "taylorseer:interval=2")
    with pytest.raises(ditaccel.UnsupportedError, match="no module to forecast in first"):
        run(model)
    ditaccel.restore(model)
    assert torch.equal(run(model), dense)


@pytest.mark.parametrize(
    ("route", "line"),
    [
        ("aAbBcC", r"do not run list by list \(first, second"),
        ("abcAB", "blocks second do not run once each, in order"),
        ("abcCBA", "blocks second do not run once each, in order"),
    ],
)
def test_what_is_no_chain_is_said_and_outputs_can_still_be_forecast(route, line):
    model = Plain(route)
    dense = run(model)
    accelerated(model, "first_block_residual:threshold=0.1")
    with pytest.raises(ditaccel.UnsupportedError, match=line):
        run(model)
    ditaccel.restore(model)
    accelerated(model, "reuse:interval=2,target=output")
    assert not torch.equal(run(model), dense)
    assert ditaccel.report(model).forecasts == 3
    ditaccel.restore(model)
    assert torch.equal(run(model), dense)


def test_what_is_no_diffusion_transformer_is_refused():
    with pytest.raises(NotRecognisedError, match=r"no argument for the timestep .*it has input\)"):
        recognise(nn.Linear(2, 2))
    with pytest.raises(ditaccel.UnsupportedError, match=r"Linear\.forward has no argument for"):
        ditaccel.accelerate(nn.Linear(2, 2))

    class Blockless(nn.Module):
        def forward(self, x, t):
            return (x * t,)

    with (
        pytest.raises(ditaccel.UnsupportedError, match="no list of two or more blocks"),
        pytest.warns(UserWarning, match="none found"),
    ):
        ditaccel.accelerate(Blockless(), "taylorseer")
    accelerated(Blockless(), "balanced")


def test_where_text_stands():
    rows = torch.tensor([False, False, True, True])
    assert text_side(rows) == ("front", 2)
    assert text_side(~rows) == ("back", 2)
    assert text_side(torch.ones(4, dtype=torch.bool)) == ("none", 4)
    for unclear in ([True, False, True], [False, False], [False, True, False]):
        with pytest.raises(NotRecognisedError):
            text_side(torch.tensor(unclear))
    pipe, _ = tiny_wan()
    config = pipe.transformer.config
    assert token_count(config, (1, 4, 2, 8, 8), 32).__name__ == "patch_tokens"
    assert token_count(config, (1, 4, 2, 8, 8), 33) is None
    assert token_count(config, (1, 2, 4, 8, 8), 64) is None


def test_a_dry_run_that_raises_leaves_nothing(unknown):
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    clean = traces(pipe)
    accelerated(pipe, "taylorseer:interval=2")

    def explode(module, args):
        raise RuntimeError("boom")

    handle = pipe.transformer.blocks[1].register_forward_pre_hook(explode)
    with pytest.raises(RuntimeError, match="boom"):
        generate(pipe, call)
    handle.remove()
    assert not torch.equal(generate(pipe, call), dense)
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


def test_a_method_that_does_not_fit_after_a_dry_run_says_so_at_every_call(unknown, monkeypatch):
    """Half of its patches must not stay: the next dry run would take them for somebody else's."""

    def unfit(self, ledger):
        raise ditaccel.ConfigError("made for another transformer")

    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    clean = traces(pipe)
    install = AttentionRuntime.install
    monkeypatch.setattr(AttentionRuntime, "install", unfit)
    accelerated(pipe, f"taylorseer:interval=2 & {LITE}")
    for _ in range(2):
        with pytest.raises(ditaccel.ConfigError, match="made for another transformer"):
            generate(pipe, call)
        assert not ditaccel.report(pipe).attention
    monkeypatch.setattr(AttentionRuntime, "install", install)
    assert not torch.equal(generate(pipe, call), dense)
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


def test_a_dry_run_draws_no_random_numbers(unknown):
    pipe, call = FAMILIES["flux"]()
    accelerated(pipe, LITE)
    torch.manual_seed(1)
    expected = torch.rand(3)
    torch.manual_seed(1)
    generate(pipe, call)
    assert torch.equal(torch.rand(3), expected)
