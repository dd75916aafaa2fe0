"""Verbs in any order, as in a notebook: on is what was asked for last, and it is undone exactly."""

import copy
import gc
import warnings
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from inspection import traces
from tiny import generate, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.core.patching import patch_of

FAST, SLOW = "taylorseer:interval=3", "reuse:interval=2"
SPARSE = "svg2:min_tokens=0,dense_steps=0,top_p=0.5,break_even=1"
SPECS = [FAST, SLOW, SPARSE, f"{SLOW} & {SPARSE}"]
STEPS = {"num_inference_steps": 5}


def config_on(pipe):
    """The spec that is on, None for dense."""
    try:
        found = ditaccel.report(pipe)
    except ditaccel.UsageError:
        return None
    return found.config.get("label") if found.is_on else None


def patched(transformer):
    return [m for m in transformer.modules() if patch_of(m) is not None]


@pytest.mark.parametrize("make", [tiny_wan, tiny_wan22, tiny_flux])
def test_accelerate_replaces_what_is_on_and_says_so(make):
    pipe, call = make()
    alone = generate(ditaccel.accelerate(make()[0], SLOW), call)
    dense = generate(pipe, call)
    clean = traces(pipe)
    ditaccel.accelerate(pipe, FAST)
    generate(pipe, call)
    with pytest.warns(UserWarning, match=r"already \(taylorseer:interval=3\): that is off now"):
        ditaccel.accelerate(pipe, SLOW)
    assert torch.equal(generate(pipe, call), alone)
    assert ditaccel.report(pipe).method == "reuse"
    ditaccel.restore(pipe)
    assert traces(pipe) == clean and torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("wrong", ["warp", "taylorseer:interval=0", "adaptive_taylor:warmup=x"])
def test_what_cannot_be_put_on_leaves_what_is_on(wrong):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, FAST)
    expected = generate(pipe, call)
    calls = ditaccel.report(pipe).total_calls
    with pytest.raises(ditaccel.ConfigError):
        ditaccel.accelerate(pipe, wrong)
    with pytest.raises(ditaccel.ConfigError), ditaccel.accelerated(pipe, wrong):
        pass
    assert torch.equal(generate(pipe, call), expected)
    assert ditaccel.report(pipe).total_calls == 2 * calls


def test_a_method_that_cannot_be_applied_leaves_what_is_on():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, SLOW)
    expected = generate(pipe, call)
    pipe.transformer.blocks[3].compile(backend="eager")
    for _ in range(2):
        with pytest.raises(ditaccel.UnsupportedError, match="cannot look into compiled blocks"):
            ditaccel.accelerate(pipe, FAST)
    assert config_on(pipe) == SLOW
    pipe.transformer.blocks[3]._compiled_call_impl.compiled = None
    assert torch.equal(generate(pipe, call), expected)


def test_nested_blocks_put_the_former_setting_back():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, FAST):
        outer = generate(pipe, call)
        calls = ditaccel.report(pipe).total_calls
        with pytest.raises(RuntimeError), ditaccel.accelerated(pipe, SLOW):
            assert config_on(pipe) == SLOW
            with ditaccel.accelerated(pipe, SPARSE):
                assert config_on(pipe) == SPARSE
            assert config_on(pipe) == SLOW
            raise RuntimeError
        assert config_on(pipe) == FAST
        assert torch.equal(generate(pipe, call), outer)
        assert ditaccel.report(pipe).total_calls == 2 * calls, "the outer report goes on"
    assert config_on(pipe) is None
    assert torch.equal(generate(pipe, call), dense)


def test_what_a_block_does_to_its_pipeline_is_undone_at_its_end():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, FAST):
        ditaccel.restore(pipe)
        assert config_on(pipe) is None
    assert config_on(pipe) is None
    with ditaccel.accelerated(pipe, FAST), pytest.warns(UserWarning, match="already"):
        ditaccel.accelerate(pipe, SLOW)
    assert torch.equal(generate(pipe, call), dense)
    ditaccel.accelerate(pipe, SLOW)
    with ditaccel.accelerated(pipe, FAST):
        ditaccel.restore(pipe)
    assert config_on(pipe) == SLOW


def test_restore_may_be_called_at_any_time():
    pipe, _ = tiny_wan()
    clean = traces(pipe)
    assert ditaccel.restore(pipe) is pipe and traces(pipe) == clean
    ditaccel.accelerate(pipe, FAST)
    for _ in range(3):
        assert ditaccel.restore(pipe) is pipe and traces(pipe) == clean
    with pytest.raises(ditaccel.UsageError, match="neither a diffusers pipeline"):
        ditaccel.restore("pipe")


@pytest.mark.parametrize("spec", SPECS)
def test_a_report_outlives_restore_and_the_block(spec):
    pipe, call = tiny_wan()
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        inside = ditaccel.report(pipe)
    after = ditaccel.report(pipe)
    assert inside.is_on and not after.is_on and "(off now)" in str(after)
    assert after.calls == inside.calls and after.method == inside.method
    assert [log.density for log in after.attention] == [log.density for log in inside.attention]
    generate(pipe, call)
    assert ditaccel.report(pipe).calls == after.calls, "a dense run is not in it"
    ditaccel.accelerate(pipe, SLOW)
    assert ditaccel.report(pipe).total_calls == 0
    twin = copy.copy(pipe)  # shares the transformer
    ditaccel.restore(twin)
    assert not ditaccel.report(pipe).is_on and not ditaccel.report(twin).is_on


@pytest.mark.parametrize("spec", SPECS)
def test_a_report_does_not_change_any_more(spec):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call)
    report = ditaccel.report(pipe)
    before = (str(report), report.to_dict())
    generate(pipe, call, **STEPS)
    assert (str(report), report.to_dict()) == before
    assert ditaccel.report(pipe).total_calls > report.total_calls
    with pytest.raises(AttributeError):
        report.total_calls = 3
    report.config["cache"] = "changed"
    ditaccel.restore(pipe)
    assert ditaccel.report(pipe).config.get("cache") != "changed"


@pytest.mark.parametrize("spec", SPECS)
def test_a_report_keeps_no_pipeline_alive(spec):
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call)
    report = ditaccel.report(pipe)
    ditaccel.restore(pipe)
    gone = [weakref.ref(pipe), weakref.ref(pipe.transformer)]
    del pipe
    gc.collect()
    assert [ref() for ref in gone] == [None, None] and report.total_calls > 0


def test_an_exchanged_transformer_is_said_and_the_old_one_is_restored():
    pipe, call = tiny_wan()
    other, _ = tiny_wan()
    old = pipe.transformer
    ditaccel.accelerate(pipe, FAST)
    generate(pipe, call)
    dense = generate(other, call)
    pipe.transformer = other.transformer
    assert torch.equal(generate(pipe, call), dense)
    text = str(ditaccel.report(pipe))
    assert "transformer was exchanged or removed after accelerate(): what took its place" in text
    with pytest.warns(UserWarning, match="was accelerated already"):
        ditaccel.accelerate(pipe, SLOW)
    assert "exchanged" not in str(ditaccel.report(pipe))
    assert not patched(old) and patched(pipe.transformer)
    ditaccel.restore(pipe)
    assert not patched(old) and not patched(pipe.transformer)
    pipe.transformer = old
    ditaccel.accelerate(pipe, SLOW)
    pipe.transformer = other.transformer
    ditaccel.restore(pipe)
    assert not patched(old)


def test_a_transformer_that_is_taken_away_is_said():
    pipe, _ = tiny_wan22()
    ditaccel.accelerate(pipe, SLOW)
    other, pipe.transformer_2 = pipe.transformer_2, None
    assert "transformer_2 was exchanged or removed" in str(ditaccel.report(pipe))
    ditaccel.restore(pipe)
    assert not patched(other) and not patched(pipe.transformer)


def test_an_exchanged_scheduler_changes_nothing():
    from diffusers import FlowMatchEulerDiscreteScheduler

    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, SLOW)
    expected = generate(pipe, call)
    pipe.scheduler = FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)
    assert torch.equal(generate(pipe, call), expected)
    assert "exchanged" not in str(ditaccel.report(pipe))


def test_pipelines_that_share_a_transformer_share_what_is_on():
    pipe, call = tiny_wan()
    twin = copy.copy(pipe)
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, FAST)
    with pytest.warns(UserWarning, match="was accelerated already"):
        ditaccel.accelerate(twin, SLOW)
    assert config_on(pipe) == config_on(twin) == SLOW
    ditaccel.restore(pipe)
    assert torch.equal(generate(twin, call), dense)


class Boom(RuntimeError):
    pass


ACTIONS = st.one_of(
    st.tuples(st.just("accelerate"), st.sampled_from([*SPECS, "warp"])),
    st.tuples(st.just("enter"), st.sampled_from([*SPECS, "warp"])),
    st.tuples(st.just("exit"), st.sampled_from([None, Boom, KeyboardInterrupt])),
    st.tuples(st.sampled_from(["restore", "reset", "report", "run", "break off"]), st.none()),
)


@pytest.fixture(scope="module")
def expected():
    """What a fresh pipeline gives for every setting."""
    found = {}
    for spec in [None, *SPECS]:
        pipe, call = tiny_wan(layers=2)
        if spec is not None:
            ditaccel.accelerate(pipe, spec)
        found[spec] = generate(pipe, {**call, **STEPS})
    return found


@settings(max_examples=20, deadline=None)
@given(actions=st.lists(ACTIONS, max_size=10))
def test_any_sequence_of_verbs(actions, expected):
    pipe, call = tiny_wan(layers=2)
    call = {**call, **STEPS}
    generate(pipe, call)  # diffusers itself leaves a hook registry on the first run
    clean, on, blocks = traces(pipe), None, []

    def stop(pipe, index, timestep, tensors):
        raise Boom

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for action, argument in actions:
            if action == "accelerate" and argument == "warp":
                with pytest.raises(ditaccel.ConfigError):
                    ditaccel.accelerate(pipe, argument)
            elif action == "accelerate":
                ditaccel.accelerate(pipe, argument)
                on = argument
            elif action == "enter":
                block = ditaccel.accelerated(pipe, argument)
                if argument == "warp":
                    with pytest.raises(ditaccel.ConfigError):
                        block.__enter__()
                    continue
                block.__enter__()
                blocks.append((block, on))
                on = argument
            elif action == "exit" and blocks:
                block, on = blocks.pop()
                error = argument and argument()
                assert not block.__exit__(argument, error, None)
            elif action == "restore":
                ditaccel.restore(pipe)
                on = None
            elif action == "reset":
                assert ditaccel.reset(pipe) is pipe
            elif action == "run":
                assert torch.equal(generate(pipe, call), expected[on])
            elif action == "break off":
                with pytest.raises(Boom):
                    generate(pipe, call, callback_on_step_end=stop)
            assert config_on(pipe) == on
        while blocks:
            block, on = blocks.pop()
            block.__exit__(None, None, None)
            assert config_on(pipe) == on
        assert torch.equal(generate(pipe, call), expected[on])
        ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), expected[None])
