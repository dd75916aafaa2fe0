"""`steps=`: how many steps a pipeline's call runs, where the config may choose."""

import copy
import json
import pickle

import pytest
import torch
from tiny import FAMILIES, VARIANTS, generate, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel import AccelerationConfig, ReuseConfig, TaylorSeerConfig
from ditaccel.reports.step_choice import Why

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")
REUSE = ReuseConfig(interval=3)


def steps_of(pipe):
    return len({call.step for call in ditaccel.report(pipe).last_generation().calls})


@pytest.mark.parametrize(
    ("make", "asked", "run"),
    [
        (tiny_wan, 20, 16),
        (tiny_wan22, 20, 16),
        (tiny_flux, 20, 16),
        (lambda: VARIANTS["flux_img2img"](), 30, 20),  # of which the last 14 are made
        (lambda: VARIANTS["wan_v2v"](), 30, 20),
        (lambda: FAMILIES["flux3"](), 20, 16),  # modular: its blocks name the arguments
    ],
    ids=["wan", "wan22", "flux", "flux_img2img", "wan_v2v", "flux3"],
)
def test_fewer_steps_are_the_very_call_with_fewer_steps(make, asked, run):
    pipe, call = make()
    ditaccel.accelerate(pipe, REUSE)
    expected = generate(pipe, {**call, "num_inference_steps": run})
    kind, attributes = type(pipe), set(vars(pipe))
    with ditaccel.accelerated(pipe, REUSE, steps=run):
        found = generate(pipe, {**call, "num_inference_steps": asked})
        choice = ditaccel.report(pipe).step_choice
    assert torch.equal(found, expected)
    assert (choice.asked, choice.run, choice.why) == (asked, run, Why.NUMBER)
    ditaccel.restore(pipe)
    assert type(pipe) is kind and set(vars(pipe)) == attributes


def test_progress_and_callbacks_see_the_steps_that_are_run():
    pipe, call = tiny_wan()
    seen, totals = [], []
    bar = pipe.progress_bar

    def watched(iterable=None, total=None):
        totals.append(total)
        return bar(iterable, total)

    pipe.progress_bar = watched
    ditaccel.accelerate(pipe, "balanced", steps=0.7)
    generate(
        pipe,
        {
            **call,
            "num_inference_steps": 30,
            "callback_on_step_end": lambda pipe, i, t, kwargs: seen.append(i) or kwargs,
        },
    )
    assert (totals, seen, pipe.num_timesteps) == ([21], list(range(21)), 21)


def test_auto_is_the_share_of_the_preset_and_says_so_once(recwarn):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "balanced", steps="auto")
    for _ in range(2):
        generate(pipe, {**call, "num_inference_steps": 40})
    report = ditaccel.report(pipe)
    assert steps_of(pipe) == 26 and report.step_choice.why is Why.SHARE
    assert "Steps: 26 of the 40 asked for are run" in str(report)
    assert sum("26 of the 40 asked for" in str(each.message) for each in recwarn) == 1
    assert json.loads(report.to_json())["step_choice"]["run"] == 26


@pytest.mark.parametrize("steps", ["auto", 0.5])
def test_few_steps_are_kept_and_the_report_says_why(steps):
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "balanced", steps=steps)
    generate(pipe, {**call, "num_inference_steps": 20})
    choice = ditaccel.report(pipe).step_choice
    assert steps_of(pipe) == 20 and (choice.run, choice.why) == (None, Why.FEW)
    generate(pipe, {**call, "num_inference_steps": 24})  # no fewer than 20 remain
    assert steps_of(pipe) == 20 and ditaccel.report(pipe).step_choice.why is Why.SHARE


def test_few_steps_of_an_image_to_image_run_are_those_that_are_made():
    pipe, call = VARIANTS["flux_img2img"]()
    ditaccel.accelerate(pipe, REUSE, steps=0.5)
    generate(pipe, {**call, "num_inference_steps": 30, "strength": 0.6})
    assert steps_of(pipe) == 18 and ditaccel.report(pipe).step_choice.why is Why.FEW
    generate(pipe, {**call, "num_inference_steps": 40, "strength": 0.6})
    assert steps_of(pipe) == 21  # of 34


def test_steps_are_kept_where_no_share_is_known_or_the_method_has_its_own_number():
    pipe, call = tiny_flux()
    ditaccel.accelerate(pipe, "balanced", steps="auto")
    generate(pipe, {**call, "num_inference_steps": 20})
    assert ditaccel.report(pipe).step_choice.why is Why.NO_SHARE
    mask = ditaccel.StepMaskConfig(steps=range(0, 20, 2), total=20)
    with ditaccel.accelerated(pipe, mask, steps=0.7):
        generate(pipe, {**call, "num_inference_steps": 20})
        assert ditaccel.report(pipe).step_choice.why is Why.MADE_FOR


def test_a_call_with_noise_levels_of_its_own_keeps_them_or_is_refused():
    pipe, call = tiny_flux()
    call = {**call, "sigmas": [1.0 - i / 16 for i in range(16)]}
    ditaccel.accelerate(pipe, REUSE, steps=0.8)
    generate(pipe, call)
    assert steps_of(pipe) == 16 and ditaccel.report(pipe).step_choice.why is Why.OWN_LEVELS
    with (
        ditaccel.accelerated(pipe, REUSE, steps=5),
        pytest.raises(ditaccel.UsageError, match=r"gives its own sigmas, whose number steps=5"),
    ):
        generate(pipe, call)


def test_a_number_is_the_most_and_steps_of_a_method_are_a_list():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, REUSE, steps=6)
    generate(pipe, {**call, "num_inference_steps": 4})
    assert steps_of(pipe) == 4 and ditaccel.report(pipe).step_choice.why is Why.FEWER
    with ditaccel.accelerated(pipe, "step_mask", steps=[0, 3]):
        assert ditaccel.report(pipe).config["cache"]["steps"] == [0, 3]


def test_only_this_pipeline_has_fewer_steps_and_its_copies_have_none():
    pipe, call = tiny_wan()
    other = type(pipe)(**pipe.components)  # which shares the scheduler and the transformer
    ditaccel.accelerate(pipe, REUSE, steps=4)
    copied = copy.deepcopy(pipe)
    assert type(copied) is type(other) is type(pickle.loads(pickle.dumps(other)))
    assert isinstance(pipe, type(other)) and type(pipe).__name__ == type(other).__name__
    generate(other, {**call, "num_inference_steps": 6})
    assert steps_of(pipe) == 6
    generate(pipe, {**call, "num_inference_steps": 6})
    assert steps_of(pipe) == 4
    ditaccel.accelerate(pipe, TaylorSeerConfig())
    assert type(pipe) is type(other)


def test_a_bare_transformer_and_a_call_without_steps_are_refused():
    pipe, _ = tiny_wan()
    with pytest.raises(ditaccel.UsageError, match="steps=4 is for a pipeline"):
        ditaccel.accelerate(pipe.transformer, REUSE, steps=4)
    assert not ditaccel.is_accelerated(pipe)

    class Odd(type(pipe)):
        def __call__(self, predictor_steps=4):
            return None

    odd = Odd(**pipe.components)
    with pytest.raises(ditaccel.UnsupportedError, match="Odd takes no num_inference_steps, so"):
        ditaccel.accelerate(odd, REUSE, steps=4)
    ditaccel.accelerate(odd, REUSE, steps="auto")
    assert type(odd) is Odd and ditaccel.report(odd).step_choice.why is Why.NOT_TAKEN


def test_as_text_and_in_files(tmp_path):
    resolve = ditaccel.config.resolve
    assert resolve("steps:auto+balanced", "wan").steps == resolve("balanced", "wan", "auto").steps
    assert resolve("steps:auto+balanced", "wan").steps == 0.65
    assert resolve("steps:auto+balanced & svg2", "wan").steps == 0.65
    assert resolve("steps:auto+reuse:interval=2", "flux").steps == "auto"
    config = AccelerationConfig(cache=REUSE, steps=26)
    assert ditaccel.config.spec_of(config) == "steps:26+reuse:interval=3"
    assert resolve("steps:26+reuse:interval=3", "wan").methods == config.methods
    config.save(tmp_path / "mine.yaml")
    assert AccelerationConfig.load(tmp_path / "mine.yaml") == config
    assert resolve(f"steps:auto+{tmp_path / 'mine.yaml'}", "wan").steps == "auto"
    assert "steps" not in ditaccel.config.to_dict(resolve("balanced", "wan"))
    with pytest.raises(ditaccel.ConfigError, match="two numbers of steps"):
        resolve(["steps:26+reuse", "steps:20+svg2"], "wan")
