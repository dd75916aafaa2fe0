"""Condition cache: what is kept is what a dense step has, the gate, exactness and undo."""

import pytest
import torch
from conformance import Subject, skipped
from ditaccel.pipelines.grids import first_shapes
from inspection import traces
from tiny import FAMILIES, VARIANTS, generate

import ditaccel
from ditaccel.calls.condition_cache import ConditionCacheConfig, _change, _Kept
from ditaccel.calls.engine.method import TransformerCall
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.sessions.session import session_of

EDITING = ["flux_kontext", "qwen_image_edit"]
REUSING = ConditionCacheConfig(interval=3, threshold=1e9)


@pytest.mark.parametrize("name", EDITING)
def test_exact_where_nothing_is_kept_and_undone(name):
    subject = Subject(VARIANTS[name], 4)
    for exact in ("interval=1", "threshold=0"):
        with ditaccel.accelerated(subject.pipe, f"condition_cache:{exact}"):
            assert torch.equal(subject.run(), subject.dense)
            assert not skipped(subject.pipe)
    ditaccel.accelerate(subject.pipe, REUSING)
    result = subject.run()
    assert skipped(subject.pipe) and torch.isfinite(result).all()
    assert not torch.equal(result, subject.dense)
    assert torch.equal(subject.run(), result), "state outlived its generation"
    ditaccel.restore(subject.pipe)
    subject.assert_as_found("condition_cache")


@pytest.mark.parametrize("name", EDITING)
def test_reused_steps_run_without_the_given_tokens(name):
    subject = Subject(VARIANTS[name], 4)
    pipe, called = subject.pipe, []
    ditaccel.accelerate(pipe, ConditionCacheConfig(interval=2, threshold=1e9))

    def see(module, args, kwargs, output):
        called.append((kwargs["hidden_states"].shape[1], output[0].shape[1]))

    handle = pipe.transformer.register_forward_hook(see, with_kwargs=True)
    blocks = [*pipe.transformer.transformer_blocks]
    lengths = []
    inner = blocks[0].register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["hidden_states"].shape[1]),
        with_kwargs=True,
    )
    subject.run()
    handle.remove()
    inner.remove()
    assert len(set(lengths)) == 2 and min(lengths) == 121
    # behind what the pipeline calls, the transformer itself gets and returns what its blocks see
    assert called == [(length, length) for length in lengths]
    log = ditaccel.report(pipe).call_logs[0]
    assert log.changed == lengths.count(121) > 0
    assert f"changed {log.changed} of {log.calls} calls" in str(ditaccel.report(pipe))


@pytest.mark.parametrize("name", EDITING)
def test_a_reused_step_is_that_of_the_whole_sequence(name):
    """At the same latents and timestep, kept keys and values are those of the step itself."""
    subject = Subject(VARIANTS[name], 4)
    pipe, calls = subject.pipe, []
    dense = pipe.transformer.forward

    def keep(module, args, kwargs):
        calls.append(dict(kwargs))

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    subject.run()
    handle.remove()
    given = calls[0]
    with torch.no_grad():
        expected = dense(**{**given, "return_dict": False})[0][:, :121]
    session = ditaccel.accelerate(pipe, REUSING)
    carried = session_of({"transformer": session.transformer}).calls["transformer"]
    named = {**given, "return_dict": False}
    with torch.no_grad():
        for index in range(3):
            step = DenoisingStep(0, index, "cond", 1.0, total=9)
            made = carried.run(TransformerCall(step, dense, (), named, named))[0]
            assert made.shape[1] == given["hidden_states"].shape[1]
            torch.testing.assert_close(made[:, :121], expected, rtol=1e-5, atol=1e-5)
    assert carried.log.changed == 1
    assert carried._states["cond"].pace == 0.0


def test_text_stays_where_it_was_or_nothing_is_kept():
    """Qwen-Image counts the positions of the text from the longest side of all pictures."""
    own, small, wide = (1, 8, 8), (1, 6, 8), (1, 4, 16)
    assert first_shapes({"img_shapes": [[own, small]] * 2}, 64) == {"img_shapes": [[own]] * 2}
    assert first_shapes({"img_shapes": [own, small]}, 64) == {"img_shapes": [own]}
    assert first_shapes({"img_shapes": [[own, wide]]}, 64) is None
    pipe, call = VARIANTS["qwen_image_edit"]()
    # 16 x 4 tokens of the given image, and 11 x 11 that are made
    call = {**call, "image": call["image"].resize((64, 16)), "num_inference_steps": 4}
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, REUSING)
    with pytest.warns(match="longer on a side than the picture that is made"):
        assert torch.equal(generate(pipe, call), dense)


def test_nothing_is_kept_where_nothing_may_be_reused():
    pipe, call = VARIANTS["flux_kontext"]()
    ditaccel.accelerate(pipe, "condition_cache:interval=1")
    carried, kept = session_of({"transformer": pipe.transformer}).calls["transformer"], []
    pipe.transformer.register_forward_hook(lambda *_: kept.append(len(carried._states)))
    generate(pipe, {**call, "num_inference_steps": 2})
    assert kept and not any(kept)


def test_the_gate_expects_the_change_to_go_on():
    def kept(index, value):
        pair = torch.full((1, 1, 2, 2), value), torch.full((1, 1, 2, 2), 1.0)
        return _Kept(None, index, {0: pair})

    # keys go from 1 to 2, values stay: sqrt(4 * 1 / (4 * 4 + 4 * 1))
    assert _change(kept(0, 1.0), kept(2, 2.0)) == pytest.approx((4 / 20) ** 0.5)
    carried = ConditionCacheConfig(interval=4, threshold=0.25).call_method()
    state = kept(2, 2.0)

    def serves(index, pace):
        state.pace = pace
        return carried._serves(state, type("Step", (), {"index": index}))

    assert serves(3, 0.1) and serves(4, 0.1) and not serves(5, 0.1)
    assert serves(5, 0.05) and not serves(6, 0.05)  # the interval
    assert not serves(3, None)


def test_with_a_cache_of_whole_calls_and_no_other():
    subject = Subject(VARIANTS["flux_kontext"], 6)
    ditaccel.accelerate(
        subject.pipe, "reuse:interval=2,target=output & condition_cache:threshold=9"
    )
    subject.run()
    report = ditaccel.report(subject.pipe)
    assert report.forecasts and report.call_logs[0].changed
    with pytest.raises(ditaccel.ConfigError, match="works between the blocks"):
        ditaccel.accelerate(subject.pipe, "taylorseer & condition_cache")


def test_nothing_to_keep_is_reported():
    subject = Subject(FAMILIES["flux"], 3)
    clean = traces(subject.pipe)
    ditaccel.accelerate(subject.pipe, REUSING)
    with pytest.warns(match="has nothing to keep; use it with an editing pipeline"):
        assert torch.equal(subject.run(), subject.dense)
    ditaccel.restore(subject.pipe)
    assert traces(subject.pipe) == clean
    with pytest.raises(ditaccel.UnsupportedError, match="condition_cache does not apply"):
        ditaccel.accelerate(FAMILIES["wan"]()[0], REUSING)


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"interval": 0}, "interval is 0"),
        ({"threshold": -1.0}, "threshold is -1.0"),
        ({"warmup": 1}, "give 2 or more"),
    ],
)
def test_bad_options_are_one_line(options, line):
    with pytest.raises(ditaccel.ConfigError, match=line):
        ConditionCacheConfig(**options)
