"""Gates that look around the blocks: how blocks modulate, the timestep, the latents on their grid.

They are thrown away after the test; see `test_gate_seams.py`.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from inspection import Watched, on, traces, unchanged
from tiny import FAMILIES, VARIANTS, generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel
from ditaccel.caching.engine.gate import Gate, StepRules
from ditaccel.caching.engine.state import Verdict
from ditaccel.caching.engine.targets import _as_returned
from ditaccel.core.reasons import Reason

SHORT = {"num_inference_steps": 3}


@dataclass
class Looking(Gate):
    """Computes every step of even index, and keeps what it is shown."""

    of: str
    forecasts: bool = False
    seen: list[torch.Tensor] = field(default_factory=list)

    def __post_init__(self) -> None:
        setattr(self, f"needs_{self.of}", True)

    def before(self, step, state):
        return Verdict(self.forecasts and step.index % 2 == 1, Reason.BETWEEN)

    def finished(self, step, state, verdict):
        self.seen.append(getattr(state, self.of).clone())


def first_block(pipe: Any) -> torch.nn.Module:
    transformer = pipe.transformer
    return getattr(transformer, "transformer_blocks", getattr(transformer, "blocks", [None]))[0]


SCALED = {
    "allegro": "attn1",
    "chroma": "attn",
    "helios": "attn1",
    "latte": "attn1",
    "ltx": "attn1",
    "ltx2": "attn1",
    "pixart": "attn1",
    "sana": "attn1",
    "skyreels_v2_forcing": "attn1",
    "wan": "attn1",
    "wan_5b": "attn1",
    "wan_vace": "attn1",
}


@pytest.mark.parametrize("name", SCALED)
def test_rows_that_a_block_is_given_scale_and_shift_what_its_norm_gives(name):
    """The gate sees, before the block runs, what then goes into the block's attention."""
    pipe, call = FAMILIES[name]()
    plain = Watched()
    plain.inputs("attention", getattr(first_block(pipe), SCALED[name]), "hidden_states")
    dense, clean = generate(pipe, {**call, **SHORT}), traces(pipe)
    expected = list(plain.seen["attention"])
    gate = Looking("modulated")
    unchanged(pipe, {**call, **SHORT}, dense, clean, on(gate, target="residual"))
    assert len(gate.seen) == len(expected) >= 3
    for ours, theirs in zip(gate.seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_they_are_seen_in_a_compiled_block_too():
    pipe, call = tiny_wan()
    first_block(pipe).compile(backend="eager")
    gate = Looking("modulated")
    with ditaccel.accelerated(pipe, cache=on(gate, target="residual")):
        generate(pipe, {**call, **SHORT})
    assert len(gate.seen) == 6


EMBEDDING = {
    "cogvideox": lambda t: t.time_embedding,
    "hidream": lambda t: t.t_embedder,
    "wan": lambda t: t.condition_embedder.time_proj,
}


@pytest.mark.parametrize("name", EMBEDDING)
def test_a_gate_sees_the_embedding_of_the_timestep_before_any_block_runs(name):
    pipe, call = FAMILIES[name]()
    plain = Watched()
    plain.outputs("time", EMBEDDING[name](pipe.transformer))
    plain.outputs("block", next(iter(pipe.transformer.children())))
    dense, clean = generate(pipe, {**call, **SHORT}), traces(pipe)
    expected = list(plain.seen["time"])
    gate = Looking("embedding")
    unchanged(pipe, {**call, **SHORT}, dense, clean, on(gate, target="residual"))
    assert len(gate.seen) == len(expected)
    assert all(torch.equal(*pair) for pair in zip(gate.seen, expected, strict=True))
    gate = Looking("embedding", forecasts=True)
    with ditaccel.accelerated(pipe, cache=on(gate, target="residual", order=0)):
        generate(pipe, {**call, **SHORT})
        calls = ditaccel.report(pipe).calls
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {0}
    assert len(gate.seen) == len(calls)


def test_a_transformer_without_a_known_embedding_is_refused_in_one_line():
    pipe, _ = tiny_dit()
    with pytest.raises(ditaccel.UnsupportedError, match="embedding of the timestep, and") as caught:
        ditaccel.accelerate(pipe, cache=on(Looking("embedding")))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "shape", "channels"),
    [
        ("dit", (4, 22, 22, 4), 1),
        ("wan", (1, 4, 12, 12, 4), 1),
        ("cogvideox", (2, 2, 14, 18, 4), 2),
        ("kandinsky5", (1, 2, 14, 18, 4), -1),
        ("stable_audio", (2, 121, 4), 1),
    ],
)
def test_latents_are_seen_with_their_places_in_front_of_their_channels(name, shape, channels):
    pipe, call = FAMILIES[name]()
    plain = Watched()
    plain.inputs("in", pipe.transformer, "hidden_states")
    gate = Looking("volume")
    with ditaccel.accelerated(pipe, cache=on(gate, target="output", rules=StepRules(warmup=1))):
        generate(pipe, {**call, "num_inference_steps": 3 + 2 * ("strength" in call)})
    assert len(gate.seen) == len(plain.seen["in"])
    for ours, theirs in zip(gate.seen, plain.seen["in"], strict=True):
        assert ours.shape == shape
        assert torch.equal(ours, theirs.movedim(channels, -1)[..., : shape[-1]])


def test_packed_latents_are_on_the_grid_of_their_tokens():
    pipe, call = FAMILIES["flux"]()
    plain = Watched()
    plain.inputs("in", pipe.transformer, "hidden_states")
    gate = Looking("volume")
    with ditaccel.accelerated(pipe, cache=on(gate, target="output")):
        generate(pipe, {**call, **SHORT})
    for ours, theirs in zip(gate.seen, plain.seen["in"], strict=True):
        assert ours.shape == (1, 1, 11, 11, 16)
        assert torch.equal(ours[0, 0, 3, 5], theirs[0, 3 * 11 + 5])


def test_given_images_among_packed_latents_are_left_out():
    pipe, call = VARIANTS["flux_kontext"]()
    plain = Watched()
    plain.inputs("in", pipe.transformer, "hidden_states")
    gate = Looking("volume")
    with ditaccel.accelerated(pipe, cache=on(gate, target="output")):
        generate(pipe, {**call, **SHORT})
    for ours, theirs in zip(gate.seen, plain.seen["in"], strict=True):
        assert theirs.shape[1] == 121 + 36 and torch.equal(ours.flatten(1, 3), theirs[:, :121])


def test_packed_latents_without_a_grid_are_refused_in_one_line():
    pipe, call = tiny_flux()
    grid = torch.zeros(9, 3)
    grid[:, 0] = torch.arange(9) // 5  # no rows and columns
    pipe._prepare_latent_image_ids = lambda *args: grid
    ditaccel.accelerate(pipe, cache=on(Looking("volume"), target="output"))
    with pytest.raises(ditaccel.UnsupportedError, match="where the latents of FluxTransformer2D"):
        generate(pipe, call)


# -- what the transformer adds to its latents --


@pytest.mark.parametrize(
    ("tiny", "alone"),
    [(tiny_flux, {"true_cfg_scale": 1.0}), (tiny_wan, {"guidance_scale": 1.0})],
)
def test_what_is_added_to_the_latents_is_held(tiny, alone):
    """`x + (output - x)` of the last computed step, by what the scheduler is given."""
    pipe, call = tiny()
    given, latents = [], []
    inner = pipe.scheduler.step

    def step(output, time, sample, *args, **kwargs):
        given.append(output.double())
        latents.append(sample.double())
        return inner(output, time, sample, *args, **kwargs)

    pipe.scheduler.step = step
    gate = Looking("samples", forecasts=True)
    gate.finished = lambda *args: None
    config = on(gate, target="output_residual", order=0)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, {**call, **alone, "num_inference_steps": 6})
        actions = [c.action for c in ditaccel.report(pipe).calls]
    assert actions == ["compute", "forecast"] * 3
    for step in (1, 3, 5):
        expected = latents[step] + (given[step - 1] - latents[step - 1])
        torch.testing.assert_close(given[step], expected, rtol=0, atol=1e-5)


def test_latents_take_the_shape_of_what_is_returned_for_them():
    latents = torch.arange(24.0).reshape(1, 4, 6)
    assert torch.equal(_as_returned(latents, torch.Size((1, 4, 6))), latents)
    # condition channels behind the latents' own
    assert torch.equal(_as_returned(latents, torch.Size((1, 4, 2))), latents[..., :2])
    # a learnt variance behind the prediction
    wide = _as_returned(latents, torch.Size((1, 8, 6)))
    assert torch.equal(wide[:, :4], latents) and not wide[:, 4:].any()


def test_a_learnt_variance_is_held_and_nothing_runs():
    pipe, call = tiny_dit()
    config = on(Looking("samples", forecasts=True), target="output_residual", order=0)
    config.made.gate.finished = lambda *args: None
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, cache=config):
        result = generate(pipe, call)
        calls = ditaccel.report(pipe).calls
    assert {c.blocks_run for c in calls if c.action == "forecast"} == {0}
    assert torch.isfinite(result).all() and not torch.equal(result, dense)
