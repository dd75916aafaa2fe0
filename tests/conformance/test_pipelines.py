"""What people run a pipeline with or from: adapters, ControlNet, modular blocks, threads."""

import threading

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux, tiny_wan
from tiny.flux import tiny_controlnet

import ditaccel

CACHES = ["confidence_gated_taylor:threshold=1e9,warmup=2", "taylorseer:interval=3"]
LITE = (
    "lite_attention:threshold=-0.02,skip_now=true,min_tokens=0,q_tile=16,k_tile=16,dense_steps=0,"
    "break_even=1"
)


def add_ip_adapter(pipe):
    """A random IP-Adapter on the double blocks of a tiny Flux; returns what to call it with."""
    torch.manual_seed(5)
    transformer = pipe.transformer
    width, text = transformer.inner_dim, transformer.config.joint_attention_dim
    tensors = {
        f"{i}.{name}": torch.randn(*shape) * 0.1
        for i in range(len(transformer.transformer_blocks))
        for name, shape in (
            ("to_k_ip.weight", (width, text)),
            ("to_v_ip.weight", (width, text)),
            ("to_k_ip.bias", (width,)),
            ("to_v_ip.bias", (width,)),
        )
    }
    projection = {
        "proj.weight": torch.randn(4 * text, 8) * 0.1,
        "proj.bias": torch.zeros(4 * text),
        "norm.weight": torch.ones(text),
        "norm.bias": torch.zeros(text),
    }
    transformer._load_ip_adapter_weights(
        {"image_proj": projection, "ip_adapter": tensors}, low_cpu_mem_usage=False
    )
    embeds = [torch.randn(1, 1, 8)]
    return {"ip_adapter_image_embeds": embeds, "negative_ip_adapter_image_embeds": embeds}


@pytest.mark.parametrize("spec", CACHES)
def test_ip_adapter(spec):
    """Caches apply, loaded before or after; attention methods say what to do."""
    pipe, call = tiny_flux()
    plain = generate(pipe, call)
    extra = add_ip_adapter(pipe)
    dense = generate(pipe, call, **extra)
    assert not torch.equal(dense, plain)
    with ditaccel.accelerated(pipe, "confidence_gated_taylor:threshold=0"):
        assert torch.equal(generate(pipe, call, **extra), dense)
    with ditaccel.accelerated(pipe, spec):
        expected = generate(pipe, call, **extra)
        assert ditaccel.report(pipe).forecasts > 0
    with pytest.raises(ditaccel.UnsupportedError, match=r"weights of its own .*unload it"):
        ditaccel.accelerate(pipe, LITE)
    later, _ = tiny_flux()
    ditaccel.accelerate(later, spec)
    assert torch.equal(generate(later, call, **add_ip_adapter(later)), expected)
    ditaccel.restore(later)
    assert torch.equal(generate(later, call, **extra), dense)


def test_ip_adapter_after_an_attention_method():
    """diffusers makes processors by the class of those it finds; a warning names the dense ones."""
    pipe, call = tiny_flux()
    call = {**call, "height": 176, "width": 176}
    own = dict(pipe.transformer.attn_processors)
    ditaccel.accelerate(pipe, LITE)
    extra = add_ip_adapter(pipe)
    with pytest.warns(UserWarning, match=r"2 of 5 attention layers run dense, .*weights of its"):
        sparse = generate(pipe, call, **extra)
    rows = ditaccel.report(pipe).attention[0].rows()
    assert {row["layer"] for row in rows} == {2, 3, 4}
    assert ditaccel.report(pipe).attention[0].density < 1
    ditaccel.restore(pipe)
    dense = generate(pipe, call, **extra)
    assert not torch.equal(sparse, dense)
    other, _ = tiny_flux()
    assert torch.equal(generate(other, call, **add_ip_adapter(other)), dense)
    pipe, _ = tiny_flux()
    ditaccel.accelerate(pipe, LITE)
    expected = generate(pipe, call)
    add_ip_adapter(pipe)
    pipe.unload_ip_adapter()  # all layers are sparse again
    assert torch.equal(generate(pipe, call), expected)
    ditaccel.restore(pipe)
    assert {k: type(p) for k, p in pipe.transformer.attn_processors.items()} == {
        k: type(p) for k, p in own.items()
    }


@pytest.mark.parametrize("spec", [*CACHES, "adaptive_taylor:tolerance=1e9,warmup=2", LITE])
def test_controlnet(spec):
    """What it adds between the blocks is part of what a computed step remembers."""
    pipe, call = tiny_controlnet()
    dense = generate(pipe, call)
    assert not torch.equal(dense, generate(pipe, call, controlnet_conditioning_scale=0.0))
    with ditaccel.accelerated(pipe, "confidence_gated_taylor:threshold=0"):
        assert torch.equal(generate(pipe, call), dense)
    with ditaccel.accelerated(pipe, spec):
        result = generate(pipe, call)
        report = ditaccel.report(pipe)
        assert report.forecasts > 0 or report.attention[0].density < 1
        assert torch.isfinite(result).all() and not torch.equal(result, dense)
        assert torch.equal(generate(pipe, call), result)
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("spec", [*CACHES, LITE])
def test_modular_pipelines(spec):
    """Blocks of diffusers' modular pipelines hold the same transformer and scheduler."""
    from diffusers.modular_pipelines.flux.modular_blocks_flux import FluxCoreDenoiseStep

    whole, call = tiny_flux()
    pipe = FluxCoreDenoiseStep().init_pipeline()
    pipe.update_components(transformer=whole.transformer, scheduler=whole.scheduler)
    pipe.set_progress_bar_config(disable=True)

    def run(seed=0):
        return pipe(
            **{name: call[name] for name in ("prompt_embeds", "pooled_prompt_embeds")},
            height=176,
            width=176,
            num_inference_steps=8,
            generator=torch.Generator().manual_seed(seed),
            output="latents",
        )

    dense = run()
    ditaccel.accelerate(pipe, spec)
    result = run()
    report = ditaccel.report(pipe)
    assert report.forecasts > 0 or report.attention[0].density < 1
    assert not torch.equal(result, dense) and torch.isfinite(result).all()
    assert not torch.equal(run(seed=1), result) and torch.equal(run(), result)
    ditaccel.restore(pipe)
    assert torch.equal(run(), dense)


@pytest.mark.parametrize("spec", [*CACHES, f"taylorseer:interval=2 & {LITE}"])
def test_two_threads_with_two_pipelines(spec):
    """At the same time, each as alone: nothing is kept in a module or a class."""
    made = [tiny_wan(), tiny_wan(), tiny_flux(), tiny_dit()]
    expected = []
    for pipe, call in made:
        ditaccel.accelerate(pipe, spec)
        expected.append(generate(pipe, call))
    results = [[] for _ in made]
    errors = []
    ready = threading.Barrier(len(made))

    def work(index):
        try:
            pipe, call = made[index]
            ready.wait()
            for _ in range(3):
                results[index].append(generate(pipe, call))
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(i,)) for i in range(len(made))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors
    for found, wanted in zip(results, expected, strict=True):
        assert len(found) == 3 and all(torch.equal(each, wanted) for each in found)


@pytest.mark.parametrize("spec", CACHES)
def test_callbacks_that_change_the_latents(spec):
    """Called at every step, forecast or not, and what they return is what goes on."""
    pipe, call = tiny_wan()
    seen = []

    def scale(pipe, index, timestep, tensors):
        seen.append(index)
        return {"latents": tensors["latents"] * 0.9}

    with ditaccel.accelerated(pipe, "confidence_gated_taylor:threshold=0"):
        exact = generate(pipe, call, callback_on_step_end=scale)
    assert torch.equal(generate(pipe, call, callback_on_step_end=scale), exact)
    seen.clear()
    with ditaccel.accelerated(pipe, spec):
        changed = generate(pipe, call, callback_on_step_end=scale)
        assert seen == list(range(8)) and not torch.equal(changed, generate(pipe, call))


def test_one_graph_for_all_layers_of_an_attention_method():
    """No recompilation per layer or step, with the limit that diffusers' own testers set."""
    pipe, call = tiny_wan(layers=6)
    call = {**call, "height": 64, "width": 64}
    torch._dynamo.reset()
    with ditaccel.accelerated(pipe, LITE):
        expected = generate(pipe, call)
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    with (
        torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True),
        ditaccel.accelerated(pipe, f"taylorseer:interval=2,granularity=last_block & {LITE}"),
    ):
        generate(pipe, call)
        assert ditaccel.report(pipe).forecasts > 0
    with (
        torch._dynamo.config.patch(recompile_limit=1, fail_on_recompile_limit_hit=True),
        ditaccel.accelerated(pipe, LITE),
    ):
        torch.testing.assert_close(generate(pipe, call), expected, rtol=1e-4, atol=1e-4)
    torch._dynamo.reset()
