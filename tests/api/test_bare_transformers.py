"""A bare transformer in a loop by hand: every method does there what it does in the pipeline."""

import warnings
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import pytest
import torch
from diffusers import DDIMScheduler, EulerDiscreteScheduler
from diffusers.models.attention import Attention
from tiny import generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel
from ditaccel import AttentionContract, BlockContract, FamilyAdapter, UnsupportedError
from ditaccel.core.calls import Arguments

SPECS = [
    "fast:tolerance=1e9",
    "adaptive_taylor:tolerance=2,warmup=0.3,correction=always",
    "adaptive_taylor:tolerance=1e9,guidance=difference,warmup=2,max_interval=3",
    "taylorseer:interval=3",
    "confidence_gated_taylor:threshold=1e9,warmup=2",
    "first_block_residual:threshold=1e9",
    "step_mask:steps=[0,1,4],total=8,correction=always,target=output",
    "reuse:interval=2",
    "svg2:top_p=0.5,min_tokens=0,dense_steps=0,break_even=1",
    "reuse:interval=3 & lite_attention:threshold=-0.02,skip_now=true,q_tile=16,k_tile=16,"
    "min_tokens=0,dense_steps=0,break_even=1",
]
LEADING = partial(DDIMScheduler, clip_sample=False, timestep_spacing="leading")
FAMILIES = {
    "flux": tiny_flux,
    "wan": tiny_wan,
    "dit": lambda: tiny_dit(scheduler=LEADING()),
    "dit-euler": lambda: tiny_dit(scheduler=EulerDiscreteScheduler()),
}


def latents_of(pipe, call):
    """What a pipeline hands to its VAE, or returns where it has none."""
    if pipe.vae is None:
        return generate(pipe, call)
    latents, decode = [], pipe.vae.decode
    try:
        pipe.vae.decode = lambda z, *args, **kwargs: latents.append(z) or decode(z, *args, **kwargs)
        generate(pipe, call)
    finally:
        del pipe.vae.decode
    return latents[0]


@dataclass
class Recorded:
    """What a pipeline hands to its transformer, as far as a loop by hand needs it."""

    start: torch.Tensor
    timesteps: list[torch.Tensor]
    branches: list[dict[str, Any]]
    scale: float
    scaling: float | None = None

    @property
    def batched(self):
        """Whether guidance branches are side by side in a batch."""
        return self.scaling is not None

    def finished(self, x):
        """What the pipeline decodes."""
        return x if self.scaling is None else 1 / self.scaling * x[: len(x) // 2]

    @classmethod
    def of(cls, pipe, call):
        calls, arguments = [], Arguments(pipe.transformer)
        hook = pipe.transformer.register_forward_pre_hook(
            lambda module, args, kwargs: calls.append(arguments.named(args, kwargs)),
            with_kwargs=True,
        )
        latents_of(pipe, call)
        hook.remove()
        timesteps = list({float(c["timestep"].max()): c["timestep"] for c in calls}.values())
        branches = [c for c in calls if c["timestep"].max() == timesteps[0].max()]
        scale = call.get("true_cfg_scale") or call["guidance_scale"]
        if pipe.vae is None:
            return cls(branches[0]["hidden_states"], timesteps, branches, scale)
        # (the transformer gets scaled latents)
        noise = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
        start = torch.cat([noise, noise])
        return cls(start, timesteps, branches, scale, pipe.vae.config.scaling_factor)

    def output(self, transformer, x, timestep):
        """The guided output of one step."""
        found = []
        for branch in self.branches:
            given = {**branch, "hidden_states": x, "timestep": timestep, "return_dict": False}
            found.append(transformer(**given)[0])
        if not self.batched:
            return found[1] + self.scale * (found[0] - found[1])
        cond, uncond = found[0].chunk(2)
        half = uncond + self.scale * (cond - uncond)
        return torch.cat([half, half])


@torch.no_grad()
def loop_with_scheduler(transformer, recorded, hidden):
    """The pipeline's loop; no frame of it has the scheduler among its variables."""
    hidden["scheduler"]._step_index = None
    x = recorded.start
    for t, given in zip(hidden["scheduler"].timesteps, recorded.timesteps, strict=True):
        x = torch.cat([x[: len(x) // 2]] * 2) if recorded.batched else x
        if recorded.batched:
            x = hidden["scheduler"].scale_model_input(x, t)
        v = recorded.output(transformer, x, given)
        x = hidden["scheduler"].step(v, t, x, return_dict=False)[0]
    return recorded.finished(x)


@torch.no_grad()
def loop_with_sigmas(transformer, recorded, sigmas):
    """The same as Euler steps, which is what the schedulers of FLUX and Wan do."""
    x = recorded.start
    for given, now, then in zip(recorded.timesteps, sigmas, sigmas[1:], strict=False):
        x = x + (then - now) * recorded.output(transformer, x, given)
    return x


@torch.no_grad()
def loop_of_noise_prediction(transformer, recorded, sigmas):
    """Euler's steps over noise levels beyond 1, as `DiTPipeline` takes them."""
    x = recorded.start
    for given, now, then in zip(recorded.timesteps, sigmas, sigmas[1:], strict=False):
        half = x[: len(x) // 2]
        x = torch.cat([half, half]) / ((now**2 + 1) ** 0.5)
        derivative = (x - (x - now * recorded.output(transformer, x, given))) / now
        x = x + derivative * (then - now)
    return recorded.finished(x)


def decisions(of):
    report = ditaccel.report(of)
    calls = [(c.step, c.action, c.cause, c.blocks_run, c.sigma) for c in report.calls]
    return calls, report.correction, report.left


@pytest.mark.parametrize("spec", SPECS)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_loop_by_hand_equals_the_pipeline(family, spec):
    pipe, call = FAMILIES[family]()
    recorded = Recorded.of(pipe, call)
    transformer, levels = pipe.transformer, getattr(pipe.scheduler, "sigmas", None)
    levels = None if levels is None else levels.clone()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ditaccel.accelerated(pipe, spec):
            expected, told = latents_of(pipe, call), decisions(pipe)
        hidden = {"scheduler": pipe.scheduler}
        with ditaccel.accelerated(transformer, spec, scheduler=pipe.scheduler):
            assert torch.equal(loop_with_scheduler(transformer, recorded, hidden), expected)
            assert decisions(transformer) == told
        if levels is None:
            return
        by_hand = loop_of_noise_prediction if levels[0] > 1 else loop_with_sigmas
        with ditaccel.accelerated(transformer, spec, sigmas=levels):
            assert torch.equal(by_hand(transformer, recorded, levels), expected)
            assert decisions(transformer) == told
    assert any(action == "forecast" for _, action, *_ in told[0]) is ("svg2" not in spec)


class MyBlock(torch.nn.Module):
    """A block with names of its own."""

    def __init__(self):
        super().__init__()
        self.norm = torch.nn.LayerNorm(16, elementwise_affine=False)
        self.attention = Attention(query_dim=16, heads=2, dim_head=8)
        self.mlp = torch.nn.Sequential(
            torch.nn.Linear(16, 32), torch.nn.GELU(), torch.nn.Linear(32, 16)
        )

    def forward(self, tokens, shift):
        tokens = tokens + self.attention(self.norm(tokens) + shift)
        return tokens + self.mlp(self.norm(tokens) + shift)


class MyModel(torch.nn.Module):
    """A transformer of no family, with names of its own."""

    def __init__(self, layers=4):
        super().__init__()
        torch.manual_seed(0)
        self.enter, self.leave = torch.nn.Linear(4, 16), torch.nn.Linear(16, 4)
        self.time = torch.nn.Linear(1, 16)
        self.stack = torch.nn.ModuleList(MyBlock() for _ in range(layers))

    def forward(self, noisy, level):
        tokens, shift = self.enter(noisy), self.time(level[:, None])[:, None]
        for block in self.stack:
            tokens = block(tokens, shift)
        return self.leave(tokens)


MINE = FamilyAdapter(
    name="mine",
    transformers=("MyModel",),
    blocks=(BlockContract("stack", hidden="tokens"),),
    attention=(AttentionContract("stack", "attention"),),
    timestep="level",
    sample="noisy",
)
SIGMAS = [1 - i / 8 for i in range(9)]


@torch.no_grad()
def own_loop(model):
    x = torch.randn(1, 64, 4, generator=torch.Generator().manual_seed(1))
    for now, then in pairwise(SIGMAS):
        x = x + (then - now) * model(x, torch.tensor([now]))
    return x


@pytest.mark.parametrize(
    ("exact", "skipping"),
    [
        (
            "taylorseer:interval=1,granularity=last_block",
            "taylorseer:interval=3,granularity=last_block",
        ),
        ("confidence_gated_taylor:threshold=0", "confidence_gated_taylor:threshold=1e9"),
        ("first_block_residual:threshold=0", "first_block_residual:threshold=1e9"),
        ("adaptive_taylor:tolerance=0", "adaptive_taylor:tolerance=1e9,correction=always"),
        (
            "svg2:min_tokens=0,dense_steps=0,top_p=1",
            "svg2:min_tokens=0,dense_steps=0,top_p=0.3,break_even=1",
        ),
    ],
)
def test_an_own_model_is_described_by_its_adapter(exact, skipping):
    model = MyModel()
    dense = own_loop(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with ditaccel.accelerated(model, exact, adapter=MINE, sigmas=SIGMAS):
            found = own_loop(model)
            assert torch.allclose(found, dense, atol=1e-5)
            assert torch.equal(found, dense) or "svg2" in exact
        ditaccel.accelerate(model, skipping, adapter=MINE, sigmas=SIGMAS)
        changed, report = own_loop(model), ditaccel.report(model)
    assert not torch.equal(changed, dense) and torch.isfinite(changed).all()
    assert report.family == "mine" and [c.step for c in report.calls] == list(range(8))
    assert report.forecasts or report.attention[0].density < 1
    assert torch.equal(own_loop(ditaccel.restore(model)), dense)


def test_an_adapter_takes_the_place_of_the_family():
    """Its name is reported; a pipeline's component is found by the class that it names."""
    pipe, call = tiny_wan()
    wan = ditaccel.families()["wan"]
    ditaccel.accelerate(pipe, "reuse:interval=2", adapter=replace(wan, name="ours"))
    generate(pipe, call)
    assert ditaccel.report(pipe).family == "ours" and ditaccel.report(pipe).forecasts


@pytest.mark.parametrize(
    ("how", "error", "line"),
    [
        ({"sigmas": [1.0, 0.5], "scheduler": LEADING()}, ditaccel.ConfigError, "not both"),
        ({"scheduler": "euler"}, ditaccel.ConfigError, "scheduler is of type str"),
        ({"sigmas": [0.1, 0.5]}, ditaccel.ConfigError, "falling noise levels"),
        ({"sigmas": [1.0]}, ditaccel.ConfigError, "falling noise levels"),
        ({"sigmas": [float("nan"), 0.0]}, ditaccel.ConfigError, "falling noise levels"),
        ({"sigmas": 5}, ditaccel.ConfigError, "falling noise levels"),
        ({"adapter": "wan"}, ditaccel.ConfigError, "adapter is of type str"),
        (
            {"adapter": replace(MINE, blocks=(BlockContract("layers"),))},
            UnsupportedError,
            "no list of blocks called 'layers'",
        ),
    ],
)
def test_mistakes_are_one_line(how, error, line):
    model = MyModel()
    before = dict(vars(model))
    with pytest.raises(error) as raised:
        ditaccel.accelerate(model, "reuse:interval=2", **{"adapter": MINE, **how})
    assert line in str(raised.value) and "\n" not in str(raised.value)
    assert vars(model) == before


def test_what_a_pipeline_knows_is_not_given():
    pipe, _ = tiny_wan()
    with pytest.raises(ditaccel.UsageError, match="for a bare transformer; WanPipeline"):
        ditaccel.accelerate(pipe, scheduler=pipe.scheduler)
    with pytest.raises(UnsupportedError, match="WanPipeline has no component of a class that"):
        ditaccel.accelerate(pipe, adapter=MINE)


def test_levels_without_the_last_one_end_at_zero():
    model = MyModel()
    with ditaccel.accelerated(model, "reuse:interval=3", adapter=MINE, sigmas=SIGMAS[:-1]):
        own_loop(model)
        actions = [c.action for c in ditaccel.report(model).calls]
    with ditaccel.accelerated(model, "reuse:interval=3", adapter=MINE, sigmas=SIGMAS):
        own_loop(model)
        assert [c.action for c in ditaccel.report(model).calls] == actions


def test_levels_of_another_loop_decide_nothing():
    """What does not follow the levels that were given is neither weighed nor corrected by them."""
    model, other = MyModel(), [0.9, 0.5, 0.3, 0.0]
    ditaccel.accelerate(model, "adaptive_taylor", adapter=MINE, sigmas=other)
    with pytest.raises(ditaccel.ConfigError, match="given as sigmas= do not match"):
        own_loop(model)
    ditaccel.restore(model)
    spec = "taylorseer:interval=3,granularity=last_block,correction=auto"
    with (
        ditaccel.accelerated(model, spec, adapter=MINE, sigmas=other),
        pytest.warns(
            UserWarning, match=r"do not match the timesteps of this loop, which is at .*:"
        ),
    ):
        own_loop(model)
        report = ditaccel.report(model)
    assert "do not match" in report.correction and report.forecasts
    assert {c.sigma for c in report.calls} == {None}
