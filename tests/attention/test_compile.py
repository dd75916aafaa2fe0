"""Regionally compiled blocks: one graph for all layers, and the results of eager."""

import pytest
import torch
from tiny import FAMILIES, generate, peaked, tiny_wan

import ditaccel

CONFIG = ditaccel.LiteAttentionConfig(
    threshold=-4.0, dense_steps=0, q_tile=16, k_tile=16, min_tokens=0, break_even=1.0
)


class Graphs:
    """A backend that runs graphs as they are, and counts them."""

    def __init__(self):
        torch._dynamo.reset()
        self.count = 0

    def __call__(self, graph, inputs):
        self.count += 1
        return graph.forward


def compile_blocks(transformer, **options):
    if getattr(transformer, "_repeated_blocks", None):
        transformer.compile_repeated_blocks(**options)
    else:
        for block in transformer.transformer_blocks:
            block.compile(**options)


# Graphs that the blocks take. More than one for each kind of block where the first or last block
# differs (SD3: a second attention, no text at the end), or the strides of what it is given.
GRAPHS = {
    "cogvideox": 2,
    "dit": 2,
    "flux": 3,
    "flux2": 2,
    "hunyuan_video": 5,
    "ltx": 1,
    "qwen_image": 1,
    "sd3": 3,
    "wan": 1,
    "z_image": 3,
}


# The rest have no kind of block that none of these has.
FAST = ("dit", "flux", "wan", "z_image")


@pytest.mark.parametrize(
    "name", [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in GRAPHS]
)
def test_all_layers_share_the_graphs_of_their_kind(name):
    pipe, call = peaked(name) if name != "dit" else FAMILIES[name]()
    dense = generate(pipe, call, num_inference_steps=5)
    with ditaccel.accelerated(pipe, attention=CONFIG):
        expected = generate(pipe, call, num_inference_steps=5)
        density = ditaccel.report(pipe).attention[0].density
    assert not torch.equal(expected, dense)
    graphs = Graphs()
    compile_blocks(pipe.transformer, fullgraph=True, backend=graphs)
    with ditaccel.accelerated(pipe, attention=CONFIG):
        assert torch.equal(generate(pipe, call, num_inference_steps=5), expected)
        assert ditaccel.report(pipe).attention[0].density == density
    assert graphs.count == GRAPHS[name]
    assert torch.equal(generate(pipe, call, num_inference_steps=5), dense)


def test_mochi_whose_processor_breaks_graphs_itself():
    pipe, call = peaked("mochi")
    with ditaccel.accelerated(pipe, attention=CONFIG):
        expected = generate(pipe, call, num_inference_steps=5)
    compile_blocks(pipe.transformer, backend=Graphs())
    with ditaccel.accelerated(pipe, attention=CONFIG):
        assert torch.equal(generate(pipe, call, num_inference_steps=5), expected)


@pytest.mark.parametrize("layers", [3, 12])
def test_the_number_of_layers_adds_no_graph(layers):
    """More layers than dynamo's limit of recompilations would allow for."""
    pipe, call = tiny_wan(layers=layers)
    call = {**call, "height": 64, "width": 64}
    ditaccel.accelerate(pipe, attention=CONFIG)
    expected = generate(pipe, call, num_inference_steps=5)
    graphs = Graphs()
    compile_blocks(pipe.transformer, fullgraph=True, backend=graphs)
    assert torch.equal(generate(pipe, call, num_inference_steps=5), expected)
    assert graphs.count == 1
    ditaccel.restore(pipe)


@pytest.mark.slow
def test_inductor():
    torch._dynamo.reset()
    pipe, call = peaked("wan")
    with ditaccel.accelerated(pipe, attention=CONFIG):
        expected = generate(pipe, call, num_inference_steps=5)
        maps = {at: m.clone() for at, m in ditaccel.report(pipe).attention[0].maps.items()}
    pipe.transformer.compile_repeated_blocks(fullgraph=True)
    with ditaccel.accelerated(pipe, attention=CONFIG):
        result = generate(pipe, call, num_inference_steps=5)
        assert ditaccel.report(pipe).attention[0].maps.keys() == maps.keys()
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-3)


def test_dense_calls_of_compiled_blocks_use_the_backend_that_was_set():
    pipe, call = tiny_wan(layers=2)
    seen = []

    from diffusers.models import attention_dispatch

    original = attention_dispatch.dispatch_attention_fn

    def watched(*args, **kwargs):
        seen.append(kwargs.get("backend"))
        return original(*args, **kwargs)

    torch._dynamo.reset()
    for block in pipe.transformer.blocks:
        block.attn1.processor._attention_backend = "_native_math"
    with ditaccel.accelerated(
        pipe, attention=ditaccel.LiteAttentionConfig(min_tokens=0, break_even=0.97)
    ):
        compile_blocks(pipe.transformer, fullgraph=True, backend="eager")
        attention_dispatch.dispatch_attention_fn = watched
        try:
            generate(pipe, call, num_inference_steps=4)  # too few steps: all dense
        finally:
            attention_dispatch.dispatch_attention_fn = original
    assert seen and set(seen) == {"_native_math"}
