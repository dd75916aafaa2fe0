"""The ComfyUI nodes, against a stand-in for what ComfyUI's documentation says of its models.

`ModelPatcher.clone()`, its `model_options`, and `set_model_unet_function_wrapper(f)`, after which
`f(apply_model, {"input", "timestep", "c", "cond_or_uncond"})` is called in place of
`apply_model(input, timestep, **c)`. That returns denoised latents, and `c["transformer_options"]`
holds `sample_sigmas`. ComfyUI itself is not run.
"""

import copy
import importlib.util
import math
import sys
import warnings
from types import ModuleType
from typing import Any

import pytest
import torch
from checkout import ROOT

import ditaccel

FOLDER = ROOT / "samples" / "comfyui"


@pytest.fixture(scope="module")
def package() -> ModuleType:
    """The folder as ComfyUI imports it: a package by the name of its path."""
    place = FOLDER / "__init__.py"
    spec = importlib.util.spec_from_file_location("custom_nodes.ditaccel_nodes", place)
    assert spec is not None and spec.loader is not None
    module = sys.modules[spec.name] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class ModelPatcher:
    """The part of ComfyUI's class that the nodes use."""

    def __init__(self, model: Any) -> None:
        self.model = model
        self.model_options: dict[str, Any] = {"transformer_options": {}}

    def clone(self) -> "ModelPatcher":
        other = ModelPatcher(self.model)
        other.model_options = copy.copy(self.model_options)
        return other

    def set_model_unet_function_wrapper(self, function: Any) -> None:
        self.model_options["model_function_wrapper"] = function


class Model:
    """`apply_model` of a flow model (or of one that predicts noise), which counts its calls."""

    def __init__(self, flow: bool = True) -> None:
        generator = torch.Generator().manual_seed(0)
        self.weight = torch.randn(4, 4, generator=generator) / 4
        self.flow, self.calls = flow, 0

    def apply_model(self, x: torch.Tensor, sigma: torch.Tensor, **c: Any) -> torch.Tensor:
        self.calls += 1
        level = sigma.reshape(-1, 1, 1, 1)
        scaled = x if self.flow else x / (level**2 + 1).sqrt()
        words = c["c_crossattn"].mean((1, 2)).reshape(-1, 1, 1, 1)
        mixed = torch.einsum("oc,bchw->bohw", self.weight, scaled)
        return x - level * torch.tanh(mixed + words + torch.sin(3 * level))


def calc_cond_batch(patcher, conds, x, sigma, sigmas, batched):
    """Both branches, in one batch or each for itself; ComfyUI decides by the free memory."""
    todo = [list(range(len(conds)))] if batched else [[i] for i in range(len(conds))]
    results = {}
    while todo:
        indexes = todo.pop()
        options = {**patcher.model_options["transformer_options"], "sample_sigmas": sigmas}
        c = {
            "c_crossattn": torch.cat([conds[i] for i in indexes]),
            "transformer_options": {**options, "cond_or_uncond": indexes, "sigmas": sigma},
        }
        given, level = torch.cat([x] * len(indexes)), torch.cat([sigma] * len(indexes))
        if "model_function_wrapper" in patcher.model_options:
            output = patcher.model_options["model_function_wrapper"](
                patcher.model.apply_model,
                {"input": given, "timestep": level, "c": c, "cond_or_uncond": indexes},
            )
        else:
            output = patcher.model.apply_model(given, level, **c)
        results.update(zip(indexes, output.chunk(len(indexes)), strict=True))
    return [results[i] for i in range(len(conds))]


@torch.inference_mode()
def sample(patcher, steps=20, top=1.0, batched=False, size=8, seed=0, stop=None, second=False):
    """A `KSampler`: Euler, or a second-order multistep solver, with guidance."""
    sigmas = top * (1 - torch.arange(steps + 1) / steps) ** (1 if top == 1 else 3)
    generator = torch.Generator().manual_seed(seed)
    conds = [torch.randn(1, 3, 4, generator=generator) for _ in range(2)]
    x = sigmas[0] * torch.randn(1, 4, size, size, generator=generator)
    former = None
    for index in range(steps):
        if index == stop:
            raise KeyboardInterrupt
        sigma = sigmas[index].reshape(1)
        positive, negative = calc_cond_batch(patcher, conds, x, sigma, sigmas, batched)
        derivative = (x - (negative + 3 * (positive - negative))) / sigma
        moved = derivative if former is None or not second else 1.5 * derivative - 0.5 * former
        x, former = x + (sigmas[index + 1] - sigmas[index]) * moved, derivative
    return x


def accelerated(package, patcher, quality="balanced", sampler="euler", config=""):
    node = package.NODE_CLASS_MAPPINGS["DitaccelAccelerate"]()
    (found,) = getattr(node, node.FUNCTION)(patcher, quality, sampler, config)
    return found


def test_what_comfyui_reads(package):
    for name, node in package.NODE_CLASS_MAPPINGS.items():
        assert package.NODE_DISPLAY_NAME_MAPPINGS[name]
        assert callable(getattr(node, node.FUNCTION)) and node.CATEGORY and node.RETURN_TYPES
        inputs = node.INPUT_TYPES()
        assert set(inputs) <= {"required", "optional"}
        assert all(isinstance(each, tuple) for group in inputs.values() for each in group.values())
    qualities = package.NODE_CLASS_MAPPINGS["DitaccelAccelerate"].INPUT_TYPES()["required"]
    assert set(qualities["quality"][0]) == {"safe", "balanced", "fast"}


@pytest.mark.parametrize("batched", [False, True], ids=["two calls", "one batch"])
@pytest.mark.parametrize("top", [1.0, 14.6], ids=["flow", "noise"])
def test_fewer_calls_and_nearly_the_same_latents(package, top, batched):
    model = Model(flow=top == 1)
    plain = ModelPatcher(model)
    dense = sample(plain, top=top, batched=batched)
    total, model.calls = model.calls, 0
    patcher = accelerated(package, plain)
    result = sample(patcher, top=top, batched=batched)
    assert 0 < model.calls < total
    error = float((result - dense).norm() / dense.norm())
    assert 0 < error < 0.05, error
    assert torch.equal(sample(patcher, top=top, batched=batched), result)
    assert torch.equal(sample(plain, top=top, batched=batched), dense), "the model is untouched"
    node = package.NODE_CLASS_MAPPINGS["DitaccelReport"]()
    latent, text = node.report(patcher, {"samples": result})
    assert latent == {"samples": result} and f"{total - model.calls // 2}" and "forecast" in text
    assert not ditaccel.is_accelerated(patcher.model_options["model_function_wrapper"].denoiser)


def test_tolerance_0_is_dense_up_to_rounding(package):
    plain = ModelPatcher(Model())
    exact = accelerated(package, plain, config="adaptive_taylor:tolerance=0")
    dense = sample(plain)
    torch.testing.assert_close(sample(exact), dense, rtol=1e-5, atol=1e-5)


def test_correction_is_for_euler_alone(package):
    spec = "adaptive_taylor:tolerance=0.5,warmup=3,max_interval=4,correction=auto"
    plain = ModelPatcher(Model())
    dense = sample(plain)
    errors = {}
    for sampler in ("euler", "other"):
        result = sample(accelerated(package, plain, sampler=sampler, config=spec))
        errors[sampler] = float((result - dense).norm())
    assert errors["euler"] < errors["other"]
    dense = sample(plain, second=True)
    result = sample(accelerated(package, plain, sampler="other"), second=True)
    assert 0 < float((result - dense).norm() / dense.norm()) < 0.1


def test_runs_keep_apart(package):
    """Another seed, size and number of steps, and a run after one that broke off."""
    plain = ModelPatcher(Model())
    patcher = accelerated(package, plain)
    runs = [{}, {"seed": 1}, {"size": 6}, {"steps": 30}, {"batched": True}]
    fresh = [sample(accelerated(package, plain), **run) for run in runs]
    with pytest.raises(KeyboardInterrupt):
        sample(patcher, stop=12)
    for run, expected in zip(runs, fresh, strict=True):
        assert torch.equal(sample(patcher, **run), expected), run
    with pytest.raises(KeyboardInterrupt):
        sample(patcher, stop=0 + 1)
    assert torch.equal(sample(patcher), fresh[0])


def test_other_wrappers(package):
    """That of another node is called inside ours; of two of ours the last one counts."""
    plain, seen = ModelPatcher(Model()), []

    def before(apply_model, args):
        seen.append(float(args["timestep"][0]))
        return apply_model(args["input"], args["timestep"], **args["c"])

    plain.set_model_unet_function_wrapper(before)
    sample(accelerated(package, plain))
    assert 0 < len(seen) < 40
    twice = accelerated(package, accelerated(package, plain, "safe"), "fast")
    wrapper = twice.model_options["model_function_wrapper"]
    assert wrapper.before is before and wrapper.setting == "fast"


@pytest.mark.parametrize(
    ("config", "line"),
    [
        ("best", "best"),
        ("taylorseer:interval=0", "interval"),
        ("first_block_residual", "block"),
        ("svg2", "attention"),
    ],
)
def test_wrong_settings_are_refused_when_the_graph_is_built(package, config, line):
    with pytest.raises(ditaccel.DitaccelError, match=line):
        accelerated(package, ModelPatcher(Model()), config=config)


def test_the_report_of_a_model_that_is_not_accelerated(package):
    node = package.NODE_CLASS_MAPPINGS["DitaccelReport"]()
    assert node.report(ModelPatcher(Model()), {})[1].endswith("is not accelerated")
    patcher = accelerated(package, ModelPatcher(Model()))
    assert node.report(patcher, {})[1].endswith("not been sampled yet")


def test_a_sampler_that_does_not_tell_its_levels_is_dense_and_that_is_said(package):
    model = Model()
    wrapper = accelerated(package, ModelPatcher(model)).model_options["model_function_wrapper"]
    x, sigma = torch.randn(1, 4, 8, 8), torch.tensor([0.5])
    c = {"c_crossattn": torch.randn(1, 3, 4), "transformer_options": {}}
    args = {"input": x, "timestep": sigma, "c": c, "cond_or_uncond": [0]}
    with pytest.warns(UserWarning, match="noise levels"):
        result = wrapper(model.apply_model, args)
    assert torch.equal(result, model.apply_model(x, sigma, **c))
    args["timestep"] = 0 * sigma
    assert torch.isfinite(wrapper(model.apply_model, args)).all()


def test_no_warning_in_an_ordinary_run(package):
    patcher = accelerated(package, ModelPatcher(Model()))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert math.isfinite(float(sample(patcher).sum()))
