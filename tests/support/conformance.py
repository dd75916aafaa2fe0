"""What every family must satisfy with every method, as checks that a test and a table share.

A check returns `WORKS`, or the reason that ditaccel itself gives for not working; whatever else
goes wrong is an assertion.
"""

from __future__ import annotations

import copy
import gc
import inspect
import pickle
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from inspection import traces
from tiny import TinyFamily, generate, other_prompt

import ditaccel
from ditaccel.config import KINDS, method_spec, methods

WORKS = "works"
# The kernels of attention methods add up in another order; caches are exact bit by bit.
ROUNDING = {"cache": 0.0, "attention": 1e-5, "calls": 0.0}


@dataclass(frozen=True)
class Specs:
    """An example of a method as the checks use it.

    Attributes:
        exact: a spec under which nothing may be skipped.
        skipping: one under which much must be.
        rounding: relative RMSE that `exact` may differ by, 0 for bit-identical.
    """

    exact: str
    skipping: str
    rounding: float


def examples_of(name: str) -> dict[str, Specs]:
    """The examples of a method's config class, as specs, by method and variant."""
    cls = methods()[name]
    found = {
        " ".join(filter(None, (name, each.variant))): Specs(
            method_spec(each.exact), method_spec(each.skipping), ROUNDING[cls.kind]
        )
        for each in cls.examples()
    }
    assert found, f"{cls.__name__}.examples() gives no example of {name}"
    return found


def in_order() -> list[str]:
    """Caching methods, those to be compared with, then attention methods."""
    return sorted(methods(), key=lambda m: (KINDS.index(methods()[m].kind), methods()[m].baseline))


METHODS = {key: specs for name in in_order() for key, specs in examples_of(name).items()}


# Tiny pipelines of which a method skips nothing, and why.
_OWN_TIMESTEPS = "each token is given a timestep of its own"
_KEEPS_STATE = "the transformer keeps something between its calls"
_NO_IMAGES = "the pipeline is given no reference image"
KEEPS_ALL = {
    ("minimax_h3", "clear"): "a frame of 2 x 2 tokens lies within one circle",
    ("flux", "condition_cache"): _NO_IMAGES,
    ("flux2", "condition_cache"): _NO_IMAGES,
    ("klein", "condition_cache"): _NO_IMAGES,
    ("qwen_image", "condition_cache"): _NO_IMAGES,
    ("anyflow", "parallel_denoising"): _OWN_TIMESTEPS,
    ("anyflow_far", "parallel_denoising"): _OWN_TIMESTEPS,
    ("sana_wm", "parallel_denoising"): _OWN_TIMESTEPS,
    ("sana_wm_refiner", "parallel_denoising"): _OWN_TIMESTEPS,
    ("skyreels_v2_forcing", "parallel_denoising"): _OWN_TIMESTEPS,
    ("wan_5b", "parallel_denoising"): _OWN_TIMESTEPS,
    ("qwen_image21", "parallel_denoising"): _KEEPS_STATE,
    ("wan_animate2", "parallel_denoising"): _KEEPS_STATE,
}


def keeps_all(subject: Subject, method: str) -> bool:
    """Whether a method has nothing to skip on a tiny pipeline; see `KEEPS_ALL`."""
    return (subject.family.make.__name__, method.split()[0]) in KEEPS_ALL


def skipped(pipe: Any) -> bool:
    """Whether the report counts anything skipped since `accelerate`."""
    report = ditaccel.report(pipe)
    sparse = any(log.density < 1 for log in report.attention)
    return report.forecasts > 0 or sparse or any(log.changed for log in report.call_logs)


def relative_rmse(result: torch.Tensor, expected: torch.Tensor) -> float:
    """Root of the mean squared error, by that of what is expected; in float64."""
    error = (result.double() - expected.double()).square().mean().sqrt()
    return float(error / expected.double().square().mean().sqrt())


# Arguments of pipelines of whose steps fewer are of use, and how many more to ask for: a start in
# the middle of the schedule; MiniMax-H3 counts noise levels, and the first step of Qwen-Image 2.1
# has other tokens than the rest.
_MORE = {"strength": 2, "text_token_tags": 1, "use_kv_cache": 1}


def short(call: Mapping[str, Any], steps: int = 5, scheduler: Any = None) -> dict[str, Any]:
    """The same call with few steps.

    Args:
        call: arguments of the pipeline.
        steps: how many of them are to be of use.
        scheduler: the pipeline's. A multistep solver gets one step more: methods that watch their
            own error compute its last but one.
    """
    more = sum(count for name, count in _MORE.items() if name in call)
    more += "Multistep" in type(scheduler).__name__
    return {**call, "num_inference_steps": steps + more}


class Subject:
    """One tiny pipeline under test, with its dense result.

    Args:
        family: of `FAMILIES`.
        steps: scheduler steps of a generation (more where some are of no use, see `short`); by
            default the pipeline's own.
    """

    def __init__(self, family: TinyFamily, steps: int | None = None) -> None:
        self.family = family
        self.pipe, call = family()
        self.call = call
        if steps is not None:
            self.call = short(call, steps, self.pipe.components.get("scheduler"))
        self.dense = self.run()
        # (diffusers itself leaves a hook registry on the first run)
        self.clean = traces(self.pipe)

    def run(self, call: Mapping[str, Any] | None = None, **changes: Any) -> torch.Tensor:
        """One generation."""
        return generate(self.pipe, dict(call or self.call), **changes)

    def transformers(self) -> dict[str, torch.nn.Module]:
        """Its transformers by component name."""
        parts = self.pipe.components.items()
        return {n: p for n, p in parts if n.startswith("transformer") and p is not None}

    def fresh(self) -> Any:
        """Another pipeline with the same weights."""
        return self.family()[0]

    def assert_as_found(self, what: str) -> None:
        """Nothing is left on the pipeline, and it runs dense."""
        assert traces(self.pipe) == self.clean, f"{what} left something"
        assert torch.equal(self.run(), self.dense), f"{what} is not undone"


def check_method(subject: Subject, method: str, thorough: bool = False) -> str:
    """Exact when nothing may be skipped; counted, finite, changed and undone when it was.

    Args:
        subject: the pipeline.
        method: a key of `METHODS`.
        thorough: also run it twice, and dense afterwards.

    Returns:
        `WORKS`, or why `accelerate` refuses the method for this family.
    """
    specs, pipe, dense = METHODS[method], subject.pipe, subject.dense
    try:
        ditaccel.accelerate(pipe, specs.exact)
    except ditaccel.UnsupportedError as error:
        subject.assert_as_found(f"{method}, refused,")
        return str(error)
    result = subject.run()
    if specs.rounding:
        assert relative_rmse(result, dense) < specs.rounding, f"{method} is not exact"
    else:
        assert torch.equal(result, dense), f"{method} is not exact"
    assert not skipped(pipe), f"{method} skipped what it must not"
    ditaccel.restore(pipe)
    ditaccel.accelerate(pipe, specs.skipping)
    result = subject.run()
    assert torch.isfinite(result).all(), f"{method} made something that is not finite"
    if keeps_all(subject, method):
        assert not skipped(pipe)
        ditaccel.restore(pipe)
        return WORKS
    assert skipped(pipe), f"{method} skipped nothing"
    assert not torch.equal(result, dense), f"{method} says it skipped, but nothing changed"
    if thorough:
        assert torch.equal(subject.run(), result), f"{method}: state outlived its generation"
    ditaccel.restore(pipe)
    assert traces(pipe) == subject.clean, f"{method} left something"
    if thorough:
        subject.assert_as_found(method)
    return WORKS


class BoomError(RuntimeError):
    """Raised in the middle of a run."""


def check_isolation(subject: Subject, spec: str) -> None:
    """State leaks neither from a broken run, nor to or from another pipeline or a copy."""
    pipe = subject.pipe
    ditaccel.accelerate(pipe, spec)
    expected = subject.run()
    assert skipped(pipe)
    _break_off(subject)
    assert torch.equal(subject.run(), expected), "a broken run left state"
    other = subject.fresh()
    assert torch.equal(generate(other, subject.call), subject.dense), "another pipeline is patched"
    ditaccel.accelerate(other, "reuse:interval=2,target=output")
    generate(other, subject.call)
    assert torch.equal(subject.run(), expected), "another pipeline's run changed this one"
    ditaccel.restore(other)
    assert torch.equal(generate(other, subject.call), subject.dense)
    twin = copy.deepcopy(pipe)
    assert torch.equal(generate(twin, subject.call), subject.dense), "a copy is accelerated"
    for name, part in subject.transformers().items():
        setattr(other, name, pickle.loads(pickle.dumps(part)))
    assert torch.equal(generate(other, subject.call), subject.dense), "a pickle is accelerated"
    with tempfile.TemporaryDirectory() as folder:
        for name, part in subject.transformers().items():
            part.save_pretrained(folder)
            loaded = type(part).from_pretrained(folder).state_dict()
            assert loaded.keys() == part.state_dict().keys(), f"{name} is saved with other names"
            assert all(torch.equal(loaded[key], value) for key, value in part.state_dict().items())
    assert torch.equal(subject.run(), expected), "a copy reached back"
    ditaccel.restore(pipe)
    subject.assert_as_found(spec)


def _break_off(subject: Subject) -> None:
    """A run that raises in its second transformer call: some methods leave no third one."""
    calls: list[int] = []

    def explode(module: Any, args: Any) -> None:
        calls.append(1)
        if len(calls) == 2:
            raise BoomError

    parts = subject.transformers().values()
    handles = [part.register_forward_pre_hook(explode) for part in parts]
    try:
        subject.run()
    except BoomError:
        return
    finally:
        for handle in handles:
            handle.remove()
    raise AssertionError("the run was not broken off")


def batched(pipe: Any, call: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The same call with two prompts, and with two samples of one prompt where that is offered."""
    other = other_prompt(call)

    def two(name: str, value: Any) -> Any:
        if name == "class_labels":
            return value + other[name]
        if "prompt" not in name and "image" not in name:
            return value
        if isinstance(value, torch.Tensor):
            return torch.cat([value, other[name]])
        return value + other[name] if isinstance(value, list) else value

    calls = [{name: two(name, value) for name, value in call.items()}]
    offered = inspect.signature(type(pipe).__call__).parameters
    for name in ("num_images_per_prompt", "num_videos_per_prompt", "num_waveforms_per_prompt"):
        if name in offered:
            calls.append({**call, name: 2})
    return calls


def check_batches(subject: Subject, exact: str, skipping: str) -> str:
    """Exact and skipping with several samples side by side.

    Returns:
        `WORKS`, or why the dense pipeline itself makes no batch.
    """
    reason = ""
    sizes = []
    for call in batched(subject.pipe, subject.call):
        try:
            dense = subject.run(call)
        except (RuntimeError, ValueError) as error:
            # some pipelines do not repeat all of the embeddings that they are given
            reason = f"the dense pipeline makes no batch: {error}"
            continue
        if len(dense) == len(subject.dense):
            continue  # CogVideoX offers several videos of a prompt, and makes one
        sizes.append(len(dense))
        with ditaccel.accelerated(subject.pipe, exact):
            assert torch.equal(subject.run(call), dense)
        with ditaccel.accelerated(subject.pipe, skipping):
            result = subject.run(call)
            assert skipped(subject.pipe) and torch.isfinite(result).all()
            assert not torch.equal(result, dense)
    if not sizes:
        return reason or "the dense pipeline makes one sample whatever it is given"
    subject.assert_as_found("a batch")
    return WORKS


def check_memory(subject: Subject, spec: str, rounds: int = 50) -> None:
    """Accelerating and restoring over and over leaves no object behind."""

    def one() -> None:
        ditaccel.restore(ditaccel.accelerate(subject.pipe, spec))

    for _ in range(3):
        one()
    gc.collect()
    before = len(gc.get_objects())
    for _ in range(rounds):
        one()
    gc.collect()
    assert len(gc.get_objects()) - before < rounds, "each round leaves something"
    assert traces(subject.pipe) == subject.clean
