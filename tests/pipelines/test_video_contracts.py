"""Contracts that only some video families need, each held against what the transformer does."""

import warnings

import pytest
import torch
from ditaccel.pipelines import adapters
from planners import RecordingPlanner
from tiny import FAMILIES, VARIANTS, generate
from tiny.kandinsky5 import kandinsky5_nabla
from tiny.skyreels_v2 import skyreels_v2_in_turn

import ditaccel
from ditaccel.caching.adaptive_taylor import StepSizeGate
from ditaccel.caching.engine.blocks import find_blocks
from ditaccel.caching.engine.correction import left_in_latents
from ditaccel.caching.engine.gaps import GapEnd
from ditaccel.caching.engine.gate import FirstBlockGate
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.core.outputs import join
from ditaccel.tuning.observe import observed

RESIDUAL = "first_block_residual:threshold=1e9,warmup=2"


class Inputs:
    """Keeps what a module is given in each of its calls."""

    def __init__(self, module, name=None):
        self.seen = []
        self._name = name
        module.register_forward_pre_hook(self._keep, with_kwargs=True)

    def _keep(self, module, args, kwargs):
        self.seen.append((kwargs[self._name] if self._name else args[0]).clone())


def forecast_calls(pipe):
    """Whether each transformer call was forecast."""
    return [c.action == "forecast" for c in ditaccel.report(pipe).calls]


# -- Wan VACE: side blocks --


def test_side_blocks_rest_and_the_last_hint_stays():
    """The last block of this pipeline takes a hint: reuse must give what the last layer had."""
    pipe, call = FAMILIES["wan_vace"]()
    assert pipe.transformer.config.vace_layers[-1] == len(pipe.transformer.blocks) - 1
    ends = Inputs(pipe.transformer.norm_out)
    spec = "taylorseer:interval=2,order=0,granularity=last_block"
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, {**call, "guidance_scale": 1.0})
        report = ditaccel.report(pipe)
    assert {c.blocks_run for c in report.calls if c.action == "forecast"} == {0}
    assert {c.blocks_run for c in report.calls if c.action == "compute"} == {7}
    for step in range(0, 8, 2):
        assert torch.equal(ends.seen[step], ends.seen[step + 1])
        assert step == 0 or not torch.equal(ends.seen[step], ends.seen[step - 1])


def test_gates_ask_the_first_main_block_and_not_a_side_block():
    pipe, call = FAMILIES["wan_vace"]()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, RESIDUAL):
        result = generate(pipe, call)
        report = ditaccel.report(pipe)
    assert torch.isfinite(result).all() and not torch.equal(result, dense)
    # undecided until the first main block has run, which the side blocks come before
    assert {c.blocks_run for c in report.calls if c.action == "forecast"} == {4}


# -- Latte: blocks of two lists take turns, in two layouts --


def test_a_residual_between_two_layouts_is_that_of_the_same_tokens():
    """Last output = what blocks added at the computed step + what the first one gives now."""
    pipe, call = FAMILIES["latte"]()
    transformer = pipe.transformer
    first, ends = [], Inputs(transformer.norm_out)
    transformer.transformer_blocks[0].register_forward_hook(lambda m, a, out: first.append(out))
    with ditaccel.accelerated(pipe, RESIDUAL):
        generate(pipe, call)
        forecast = forecast_calls(pipe)
    assert forecast[:3] == [False, False, True]
    frames = 4  # hidden states are (B frames, tokens, C) in front and behind
    assert first[0].shape[0] == 2 * frames and first[0].shape == ends.seen[0].shape
    added = ends.seen[1] - first[1]
    for step in range(2, len(forecast)):
        assert forecast[step]
        torch.testing.assert_close(ends.seen[step], first[step] + added, rtol=1e-5, atol=1e-5)


def test_without_attention_across_frames_nothing_is_forecast_and_it_is_said():
    pipe, call = FAMILIES["latte"]()
    call = {**call, "enable_temporal_attentions": False}
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, "taylorseer:interval=2,granularity=last_block")
    with pytest.warns(UserWarning, match="the last block did not run on a computed step"):
        assert torch.equal(generate(pipe, call), dense)
    assert ditaccel.report(pipe).forecasts == 0


# -- LTX 2: video and sound --


@pytest.mark.parametrize("target", ["hidden", "output"])
def test_sound_is_forecast_as_the_video_is(target, monkeypatch):
    """Both streams of a forecast step are on the line through those of the computed ones."""
    pipe, call = FAMILIES["ltx2"]()
    norms = [Inputs(pipe.transformer.norm_out), Inputs(pipe.transformer.audio_norm_out)]
    outputs = []
    convert = pipe.convert_velocity_to_x0

    def watched(sample, output, *args):
        outputs.append(output.clone())
        return convert(sample, output, *args)

    monkeypatch.setattr(pipe, "convert_velocity_to_x0", watched)
    alone = dict.fromkeys(
        ["guidance_scale", "audio_guidance_scale", "modality_scale", "audio_modality_scale"], 1.0
    )
    spec = f"taylorseer:interval=2,warmup=2,granularity=last_block,target={target}"
    with ditaccel.accelerated(pipe, spec):
        result = pipe(**{**call, **alone}, generator=torch.Generator().manual_seed(0))
        assert forecast_calls(pipe) == [False, False, True, False, True, False, True]
    assert torch.isfinite(result.audio).all()
    streams = [outputs[::2], outputs[1::2]] if target == "output" else [n.seen for n in norms]
    assert len(norms[0].seen) == (4 if target == "output" else 7)
    for stream in streams:
        expected = 2 * stream[1] - stream[0]
        torch.testing.assert_close(stream[2], expected, rtol=1e-4, atol=1e-4)
        assert not torch.equal(stream[2], stream[1])


def test_the_worse_of_two_streams_decides():
    """A little sound beside much video: its error must count as much."""
    state = ditaccel.AdaptiveTaylorConfig().policy().branch_state()
    video, sound = torch.full((1, 100, 4), 1.0), torch.full((1, 2, 4), 0.1)
    state.samples, state.shapes = [video, sound], [video.shape, sound.shape]
    state.hidden_shapes = state.shapes
    error = join([torch.full_like(video, 0.001), torch.full_like(sound, 0.03)])
    gate = StepSizeGate(tolerance=0.01, order=1, max_interval=12)
    end = GapEnd(error, -0.1, 4, False)
    gate.gap_ended(state, end, left_in_latents(state, end))
    assert state.memory.error == pytest.approx(0.3)
    state.first.push(0.0, join([video, sound]))
    after = join([video * 1.001 * 2, sound * 1.5 * 2])
    verdict = FirstBlockGate(0.1).after_blocks(
        DenoisingStep(0, 1, "cond", 1.0), state, after / 2, after
    )
    assert not verdict.forecast and verdict.error == pytest.approx(0.5, rel=1e-4)


@pytest.mark.parametrize("guidance", ["difference", "follow"])
def test_branches_of_another_size_decide_for_themselves(guidance):
    """LTX 2 calls with two branches at once, then with one: there is no difference to take."""
    pipe, call = FAMILIES["ltx2"]()
    dense = generate(pipe, call)
    for tolerance, exact in ((0, True), (1e9, False)):
        spec = {
            "difference": f"adaptive_taylor:tolerance={tolerance},guidance=difference",
            "follow": f"confidence_gated_taylor:threshold={tolerance},guidance=follow,warmup=2",
        }[guidance]
        with ditaccel.accelerated(pipe, spec):
            assert torch.equal(generate(pipe, call), dense) == exact
            reasons = {c.reason for c in ditaccel.report(pipe).calls}
            assert not any("difference to" in r or "follows" in r for r in reasons)


def test_guidance_that_perturbs_attention_is_one_more_branch():
    pipe, call = FAMILIES["ltx2"]()
    call = {**call, "stg_scale": 1.0, "spatio_temporal_guidance_blocks": [2]}
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0"):
        assert torch.equal(generate(pipe, call), dense)
        branches = {c.branch for c in ditaccel.report(pipe).calls}
    assert branches == {"cond_uncond", "uncond_stg", "uncond_modality"}


# -- SkyReels-V2: diffusion forcing --


def test_frames_that_take_turns_are_cached_as_one_loop():
    pipe, call = skyreels_v2_in_turn()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, "taylorseer:interval=1,granularity=last_block"):
        assert torch.equal(generate(pipe, call), dense)
    with ditaccel.accelerated(pipe, "taylorseer:interval=2,granularity=last_block"):
        first = generate(pipe, call)
        report = ditaccel.report(pipe)
        assert torch.isfinite(first).all() and not torch.equal(first, dense)
        steps = 8 + 3 * 3  # three later frames, three steps behind each other
        assert [c.step for c in report.calls[::2]] == list(range(steps))
        assert {c.generation for c in report.calls} == {0}
        assert report.forecasts == 2 * (steps // 2)
        assert torch.equal(generate(pipe, call), first)
    assert torch.equal(generate(pipe, call), dense)


def test_adaptive_steps_say_that_frames_take_turns():
    pipe, call = skyreels_v2_in_turn()
    dense = generate(pipe, call)
    with (
        ditaccel.accelerated(pipe, "balanced"),
        pytest.raises(ditaccel.ConfigError, match="gives each frame its own; use a"),
    ):
        generate(pipe, call)
    calls = ditaccel.report(pipe).calls
    assert {c.step for c in calls} == {0}, "as soon as it shows, not after the warm-up"
    assert torch.equal(generate(pipe, call), dense)


def test_a_mask_that_is_causal_by_blocks_of_frames_stays_dense_and_says_so():
    pipe, call = FAMILIES["skyreels_v2_forcing"]()
    call = {**call, "causal_block_size": 2}
    dense = generate(pipe, call)
    with (
        ditaccel.accelerated(pipe, attention=ditaccel.LiteAttentionConfig(min_tokens=0)),
        pytest.warns(UserWarning, match="mask differs between queries; attention stays dense"),
    ):
        assert torch.equal(generate(pipe, call), dense)


# -- Cosmos: EDM --


def test_outputs_are_corrected_whoever_preconditions_them():
    """The scheduler does with Cosmos 1, the pipeline with 2."""
    assert adapters()["cosmos"].preconditioned
    for make, sigma in ((FAMILIES["cosmos"], 80.0), (VARIANTS["cosmos2"], 80.0)):
        pipe, call = make()
        with ditaccel.accelerated(pipe, "adaptive_taylor:tolerance=0.01"):
            generate(pipe, call)
            report = ditaccel.report(pipe)
        assert report.correction == "on"
        assert report.calls[0].sigma == pytest.approx(sigma)
        assert {c.branch for c in report.calls} == {"call0", "call1"}


# -- Kandinsky 5: a sparse attention of its own --


def test_a_sparse_attention_of_the_models_own_stays_and_caches_apply():
    pipe, call = kandinsky5_nabla()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # flex attention without torch.compile
        dense = generate(pipe, call)
        with ditaccel.accelerated(pipe, "taylorseer:interval=2,granularity=last_block"):
            assert not torch.equal(generate(pipe, call), dense)
        ditaccel.accelerate(pipe, attention=ditaccel.LiteAttentionConfig(min_tokens=0))
    with pytest.warns(UserWarning, match="it has a BlockMask, a sparse attention of its own"):
        assert torch.equal(generate(pipe, call), dense)


# -- FramePack: several denoising loops in one call, with tokens of the past --


def test_sections_of_one_call_are_generations_of_their_own():
    pipe, call = FAMILIES["framepack"]()
    call = {**call, "num_frames": 17}
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, "taylorseer:interval=2,final=1,granularity=last_block"):
        result = generate(pipe, call)
        calls = list(ditaccel.report(pipe).calls)
        assert torch.isfinite(result).all() and not torch.equal(result, dense)
        assert torch.equal(generate(pipe, call), result)
    places = list(dict.fromkeys((c.generation, c.step) for c in calls))
    assert places == [(g, s) for g in range(2) for s in range(8)]
    for generation in range(2):
        own = [c for c in calls if c.generation == generation]
        assert [c.action for c in own[:2]] == ["compute"] * 2, "a section has no history"
        assert {c.reason for c in own[-2:]} == {"last step"}


def test_text_stands_behind_tokens_of_the_past_and_of_the_latents():
    pipe, call = FAMILIES["framepack"]()
    planner = RecordingPlanner()
    with observed(pipe, planner):
        generate(pipe, call)
    past = 2 * 6 * 6 + 1 * 3 * 3 + 4 * 2 * 2  # clean, at half of the resolution, at a quarter
    texts = {c.length - (past + 3 * 6 * 6): c.text for c, _ in planner.seen}
    assert set(texts) == {4 + 5, 4 + 7}, "tokens of the image, and of the prompts"
    assert {start for start, _ in texts.values()} == {past + 3 * 6 * 6}


# -- attention methods, where sequences are laid out in a way of their own --


@pytest.mark.parametrize(
    "name", ["cosmos", "framepack", "hunyuan_video15", "kandinsky5", "latte", "ltx2", "wan_5b"]
)
def test_clusters_of_tokens_are_skipped_the_same_each_time_and_undone(name):
    pipe, call = FAMILIES[name]()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, "svg2:top_p=0.5,min_tokens=0,break_even=1,dense_steps=1"):
        result = generate(pipe, call)
        assert 0.2 < ditaccel.report(pipe).attention[0].density < 0.7
        assert torch.isfinite(result).all() and not torch.equal(result, dense)
        assert torch.equal(generate(pipe, call), result)
    assert torch.equal(generate(pipe, call), dense)


_COMPILED = ("allegro", "cosmos", "framepack", "kandinsky5", "latte", "ltx2", "wan_5b", "wan_vace")


@pytest.mark.parametrize(
    "name", ["hunyuan_video15", *(pytest.param(n, marks=pytest.mark.slow) for n in _COMPILED)]
)
def test_compiled_blocks_do_what_eager_ones_do(name):
    """Without a break of the graph, in attention methods and in caches."""
    pipe, call = FAMILIES[name]()
    call = {**call, "num_inference_steps": 4}
    specs = [
        "svg2:top_p=0.5,min_tokens=0,break_even=1,dense_steps=1",
        "taylorseer:interval=2,granularity=last_block",
    ]
    expected = []
    for spec in specs:
        with ditaccel.accelerated(pipe, spec):
            expected.append(generate(pipe, call))
    torch._dynamo.reset()
    for block in find_blocks(pipe.transformer, adapters()[FAMILIES[name].family].blocks):
        block.module.compile(fullgraph=True, backend="eager")
    for spec, eager in zip(specs, expected, strict=True):
        with ditaccel.accelerated(pipe, spec):
            assert torch.equal(generate(pipe, call), eager), spec
