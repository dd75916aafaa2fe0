"""Every way to end with no effect ends in an error or a warning that says what to do.

`WAYS` lists them. Unknown options, presets and methods are in `test_config.py`.
"""

from __future__ import annotations

import contextlib
import warnings
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.attention_dispatch import dispatch_attention_fn
from planners import RecordingPlanner, use
from tiny import FAMILIES, generate, tiny_dit, tiny_flux, tiny_wan
from torch import nn

import ditaccel
from ditaccel.attention.engine import attend, runtime

LITE = "lite_attention:min_tokens=0,q_tile=16,k_tile=16,break_even=1"
WAYS = {}


def way(line, error=None):
    """Register a way; it must warn with `line`, or raise `error` with it."""

    def register(function):
        WAYS[function.__name__] = (function, line, error)
        return function

    return register


def run(pipe, call, spec, **changes):
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call, **changes)
    return ditaccel.report(pipe)


@way("has a UNet .* and no transformer", ditaccel.UnsupportedError)
def no_transformer():
    ditaccel.accelerate(SimpleNamespace(components={"unet": nn.Linear(2, 2)}))


@way("no argument for the timestep", ditaccel.UnsupportedError)
def no_diffusion_transformer():
    ditaccel.accelerate(nn.Linear(2, 2))


@way("names neither a caching method .* nor an attention method", ditaccel.ConfigError)
def a_config_without_a_method():
    ditaccel.accelerate(tiny_dit()[0], ditaccel.AccelerationConfig())


@way(r"has 1 block\(s\); caching needs at least two", ditaccel.UnsupportedError)
def one_block_to_hook():
    ditaccel.accelerate(tiny_wan(layers=1)[0])


@way("attention methods do not apply to .*, caching does", ditaccel.UnsupportedError)
def no_attention_module_to_replace():
    name = next(n for n, family in FAMILIES.items() if not family.attention)
    ditaccel.accelerate(FAMILIES[name]()[0], LITE)


@way("calls neither dispatch_attention_fn nor", ditaccel.UnsupportedError)
def a_processor_without_attention():
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    pipe, _ = tiny_dit()
    pipe.transformer.transformer_blocks[0].attn1.processor = SanaLinearAttnProcessor2_0()
    ditaccel.accelerate(pipe, LITE)


@way("no module to forecast in", ditaccel.UnsupportedError)
def no_module_to_forecast():
    from ditaccel.pipelines import BlockContract

    from ditaccel.caching.engine.blocks import find_blocks
    from ditaccel.caching.engine.hooks import BlockCache
    from ditaccel.core.patching import PatchLedger

    blocks = find_blocks(tiny_dit()[0].transformer, (BlockContract("transformer_blocks"),))
    policy = ditaccel.TaylorSeerConfig().policy()
    BlockCache(blocks, policy, print).install(PatchLedger(None))


@way("compile its blocks instead", ditaccel.UnsupportedError)
def blocks_inside_one_compiled_graph():
    pipe, _ = tiny_dit()
    pipe.transformer.compile(backend="eager")
    ditaccel.accelerate(pipe, "taylorseer")


@way("4 steps are too few for adaptive_taylor")
def too_few_steps_to_skip_one():
    run(*tiny_dit(), "adaptive_taylor", num_inference_steps=4)


@way(
    r"a whole generation was computed and nothing forecast \(mostly: error above threshold\); raise"
)
def a_threshold_that_never_fires():
    run(*tiny_dit(), "confidence_gated_taylor:threshold=1e-12")


@way(r"nothing forecast \(mostly: gap reached\)")
def a_tolerance_that_is_never_met():
    run(*tiny_wan(), "adaptive_taylor:tolerance=1e-12")


@way("non-finite features in generation 0")
def features_that_are_not_finite():
    pipe, call = tiny_wan()
    with torch.no_grad():
        pipe.transformer.blocks[3].ffn.net[2].weight.fill_(float("nan"))
    run(pipe, call, "taylorseer:interval=2,granularity=last_block")


@way("over the budget of .* going on with granularity='last_block'")
def a_budget_that_leaves_less():
    run(*tiny_dit(), "taylorseer:memory_budget=50kB,on_budget=downgrade")


@way("needs a deterministic scheduler, and this scheduler draws noise", ditaccel.ConfigError)
def a_correction_that_cannot_be_made():
    from diffusers import EulerAncestralDiscreteScheduler

    pipe, call = tiny_dit(scheduler=EulerAncestralDiscreteScheduler())
    run(pipe, call, "taylorseer:interval=2,correction=always")


@way("no scheduler is in sight; every second step is computed instead")
def a_loop_without_noise_levels_to_weigh_by():
    pipe, call = tiny_wan(layers=2)
    transformer, embeds = pipe.transformer, call["prompt_embeds"]
    del pipe
    ditaccel.accelerate(transformer, "adaptive_taylor")
    with torch.no_grad():
        transformer(torch.randn(1, 4, 2, 8, 8), torch.tensor([900.0]), embeds)


@way("the last block did not run on a computed step, .* 1 of its 4 blocks were taken out or exch")
def a_last_block_that_is_left_out():
    pipe, call = tiny_wan()
    blocks = pipe.transformer.blocks
    ditaccel.accelerate(pipe, "taylorseer:interval=2,granularity=last_block")
    last = blocks[3]
    del blocks[3]
    generate(pipe, call)
    assert last is not None


def _every_other_block(self, hidden_states, timestep, encoder_hidden_states, *args, **kwargs):
    """A forward of somebody's own, as scripts for other caches put them into the class."""
    blocks, kept = self.blocks, list(self.blocks)
    try:
        self.blocks = nn.ModuleList(kept[::2])
        own = type(self).__mro__[1].forward
        return own(self, hidden_states, timestep, encoder_hidden_states, *args, **kwargs)
    finally:
        self.blocks = blocks


def _with_a_forward_of_its_own(pipe):
    """Put into a class for this test alone, which stands for the transformer's own."""
    kind = type(pipe.transformer)
    inside = {"forward": _every_other_block, "__module__": kind.__module__}
    pipe.transformer.__class__ = type(kind.__name__, (kind,), inside)


@way("2 of 4 blocks were left out by the forward that .*test_no_silent_nothing has put in place")
def a_forward_of_somebody_elses_that_leaves_blocks_out():
    pipe, call = tiny_wan()
    _with_a_forward_of_its_own(pipe)
    run(pipe, call, "taylorseer:interval=2,granularity=last_block")


@way("2 attention layers were left out of a call by the forward that .*test_no_silent_nothing")
def a_forward_of_somebody_elses_that_leaves_attention_out():
    pipe, call = FAMILIES["wan"]()
    _with_a_forward_of_its_own(pipe)
    run(pipe, call, LITE, num_inference_steps=5)


@way("the transformer returns more than latents")
def outputs_that_cannot_be_made_up():
    class Two(nn.Module):
        def forward(self, x, timestep):
            return x * 2, "more"

    model = Two()
    ditaccel.accelerate(model, "reuse:interval=2,target=output")
    for t in (3.0, 2.0, 1.0):
        model(torch.ones(1, 4, 4), torch.tensor([t]))


@way("4 of 4 attention layers run dense, since their processors were replaced after")
def processors_that_were_replaced():
    from diffusers.models.attention_processor import SanaLinearAttnProcessor2_0

    pipe, call = FAMILIES["dit"]()
    ditaccel.accelerate(pipe, LITE)
    for block in pipe.transformer.transformer_blocks:
        block.attn1.processor = SanaLinearAttnProcessor2_0()
    with contextlib.suppress(Exception):  # (it fits no attention of DiT)
        generate(pipe, call, num_inference_steps=2)


@way("queries, keys and values differ in dtype")
def dtypes_that_differ_without_autocast():
    pipe, call = FAMILIES["wan"]()
    for block in pipe.transformer.blocks:
        block.attn1.norm_q.register_forward_hook(lambda *a: a[-1].double())
    ditaccel.accelerate(pipe, LITE)
    with contextlib.suppress(RuntimeError):
        generate(pipe, call)


@way("4 steps are too few for this attention method")
def too_few_steps_for_attention():
    run(*FAMILIES["dit"](), LITE, num_inference_steps=4)


@way("sequences of 121 tokens are too short")
def a_short_sequence():
    run(*FAMILIES["dit"](), "lite_attention", num_inference_steps=5)


class BiasedProcessor:
    """Self-attention with a bias on the scores."""

    def __call__(self, attn, hidden_states, *args, **kwargs):
        length = hidden_states.shape[1]
        q, k, v = (getattr(attn, n)(hidden_states) for n in ("to_q", "to_k", "to_v"))
        q, k, v = (x.unflatten(2, (attn.heads, -1)) for x in (q, k, v))
        bias = torch.full((1, 1, length, length), 0.5)
        return attn.to_out[0](dispatch_attention_fn(q, k, v, attn_mask=bias).flatten(2, 3))


@way("its mask adds a bias to the scores; attention stays dense")
def a_mask_that_forces_dense():
    pipe, call = FAMILIES["wan"]()
    for block in pipe.transformer.blocks:
        block.attn1.processor = BiasedProcessor()
    run(pipe, call, LITE, num_inference_steps=5)


@way(r"100 % of the attention would be kept, and here that pays below 68 %")
def maps_that_keep_nearly_all():
    run(*FAMILIES["dit"](), "lite_attention:min_tokens=0,q_tile=16,k_tile=16,threshold=-30")


@way(r"no attention call of a whole generation was sparse \(dense first steps\); lower dense_steps")
def dense_steps_that_cover_the_run():
    run(*FAMILIES["dit"](), f"{LITE},dense_steps=8")


@way(r"no attention call of a whole generation was sparse \(dense first layers\); lower dense_")
def dense_layers_that_cover_the_model():
    run(*FAMILIES["dit"](), f"{LITE},dense_steps=0,dense_layers=4")


@pytest.mark.parametrize("name", WAYS)
def test_it_is_said(name):
    function, line, error = WAYS[name]
    torch._dynamo.reset()
    if error is None:
        with pytest.warns(UserWarning, match=line):
            function()
        return
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with pytest.raises(error, match=line):
            function()


def test_a_slower_backend_is_said_where_triton_is_meant(monkeypatch):
    pipe, call = FAMILIES["dit"]()
    monkeypatch.setattr(runtime, "_WITHOUT_TRITON", ())
    with pytest.warns(UserWarning, match="the Triton kernel cannot run here .*; a slower backend"):
        run(pipe, call, f"{LITE},dense_steps=0")
    ditaccel.restore(pipe)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Triton kernel.*")
        run(pipe, call, f"{LITE},dense_steps=0")


def test_a_slower_backend_of_moments_is_said_too(monkeypatch):
    pipe, call = FAMILIES["dit"]()
    monkeypatch.setattr(runtime, "_WITHOUT_TRITON", ())
    monkeypatch.setattr(attend, "tile_attention_backends", lambda *_, **__: {"triton": None})
    sla = "sla:min_tokens=0,q_tile=16,k_tile=16,break_even=1,dense_steps=0"
    with pytest.warns(UserWarning, match="the Triton kernel of moments cannot run here .* cpu"):
        run(pipe, call, sla)
    ditaccel.restore(pipe)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*Triton kernel.*")
        run(pipe, call, f"{sla},mode=sparse")


@pytest.mark.parametrize(
    "spec",
    [
        "confidence_gated_taylor:threshold=0",
        "first_block_residual:threshold=0",
        "adaptive_taylor:tolerance=0",
        "reuse:interval=1",
        "step_mask:steps=[0,1,2,3,4,5,6,7]",
        "confidence_gated_taylor:threshold=1e9",
    ],
)
def test_what_was_asked_for_is_not_warned_of(spec):
    pipe, call = tiny_flux()
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="ditaccel.*")
        run(pipe, call, spec)


def test_the_report_says_it_too():
    pipe, call = tiny_dit()
    ditaccel.accelerate(pipe, "confidence_gated_taylor:threshold=1e-12")
    assert "No transformer call was seen" in str(ditaccel.report(pipe))
    with pytest.warns(UserWarning, match="nothing forecast"):
        generate(pipe, call)
    text = str(ditaccel.report(pipe))
    assert "Nothing was skipped: all 8" in text and "Warning: a whole generation" in text


def test_attention_that_is_not_reached_is_said():
    pipe, call = FAMILIES["dit"]()
    planner = RecordingPlanner()
    use(pipe, planner)
    for block in pipe.transformer.transformer_blocks:
        block.attn1.processor._ditaccel_layer.attend = lambda layer, dense, *rest: dense()
    with pytest.warns(UserWarning, match="called attention in a way that is not seen here"):
        generate(pipe, call)
