"""Promises of the verbs: exact when nothing is skipped, undone bit for bit, never a leak."""

import copy
import gc
import io
import pickle
import weakref
from types import SimpleNamespace

import pytest
import torch
from inspection import traces
from tiny import generate, tiny_dit, tiny_flux, tiny_wan, tiny_wan22

import ditaccel
from ditaccel.sessions.session import session_of

FAMILIES = [tiny_dit, tiny_wan, tiny_wan22, tiny_flux]
EXACT = [
    "confidence_gated_taylor:threshold=0",
    "confidence_gated_taylor:threshold=0,target=residual,guidance=follow",
    "first_block_residual:threshold=0",
    "adaptive_taylor:tolerance=0",
    "adaptive_taylor:tolerance=0,guidance=difference",
    "adaptive_taylor:tolerance=0,guidance=difference,target=output",
    "taylorseer:interval=1",
    "taylorseer:interval=1,granularity=last_block",
    "reuse:interval=1",
    "step_mask:steps=[0,1,2,3,4,5,6,7,8,9,10,11]",
]
SKIPPING = [
    "confidence_gated_taylor:threshold=1e9",
    "confidence_gated_taylor:threshold=1e9,target=residual,guidance=follow,basis=auto",
    "first_block_residual:threshold=1e9,order=1",
    "adaptive_taylor:tolerance=1e9,guidance=difference,guidance_interval=2",
    "taylorseer:interval=3,order=2",
    "taylorseer:interval=3,granularity=last_block,coordinate=sigma",
    "taylorseer:interval=3,granularity=last_block,target=output",
    "adaptive_taylor:tolerance=1e9,guidance=difference,target=output",
    "confidence_gated_taylor:threshold=1e9,target=output,guidance=follow",
    "reuse:interval=2,target=residual",
    "step_mask:steps=[0,1,5,10],basis=newton,coordinate=timestep",
]


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("spec", EXACT)
def test_nothing_skipped_is_bit_exact(make, spec):
    pipe, call = make()
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, spec):
        assert torch.equal(generate(pipe, call), dense)
        report = ditaccel.report(pipe)
        assert report.forecasts == 0 and report.computed_share == 1.0
        assert "Nothing was skipped" in str(report)


@pytest.mark.parametrize("make", FAMILIES)
@pytest.mark.parametrize("spec", SKIPPING)
def test_skipping_is_counted_finite_repeatable_and_undone(make, spec):
    pipe, call = make()
    dense = generate(pipe, call)
    clean = traces(pipe)  # diffusers itself leaves a hook registry on the first run
    ditaccel.accelerate(pipe, spec)
    first, second = generate(pipe, call), generate(pipe, call)
    report = ditaccel.report(pipe)
    assert 0 < report.computed_share < 1 and report.forecasts > 0
    assert torch.isfinite(first).all()
    assert torch.equal(first, second), "state outlived its generation"
    assert not torch.equal(first, dense)
    ditaccel.restore(pipe)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)


@pytest.mark.parametrize("make", FAMILIES)
def test_restore_before_any_call_leaves_nothing(make):
    pipe, _ = make()
    before = traces(pipe)
    ditaccel.accelerate(pipe)
    ditaccel.restore(pipe)
    assert traces(pipe) == before


@pytest.mark.parametrize("make", FAMILIES)
def test_other_prompt_and_size_equal_a_fresh_pipeline(make):
    spec = "confidence_gated_taylor:threshold=1e9"
    pipe, call = make()
    other = dict(call)
    if "class_labels" in call:
        other["class_labels"] = [7, 8, 9]
    else:
        other["prompt_embeds"] = call["prompt_embeds"] * 0.5
        other["height"] = 48
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call)
    reused = generate(pipe, other, num_inference_steps=9)
    fresh, _ = make()
    ditaccel.accelerate(fresh, spec)
    assert torch.equal(reused, generate(fresh, other, num_inference_steps=9))


class Boom(RuntimeError):
    pass


@pytest.mark.parametrize("where", ["callback", "block"])
def test_exception_in_mid_run_leaves_no_state(where):
    spec = "taylorseer:interval=3"
    fresh, call = tiny_wan()
    ditaccel.accelerate(fresh, spec)
    expected = generate(fresh, call)
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, spec)
    if where == "callback":

        def callback(pipe, index, timestep, tensors):
            if index == 4:
                raise Boom
            return tensors

        with pytest.raises(Boom):
            generate(pipe, call, callback_on_step_end=callback)
    else:
        calls = []

        def explode(module, args):
            calls.append(1)
            if len(calls) == 3:
                raise Boom

        handle = pipe.transformer.blocks[2].register_forward_pre_hook(explode)
        with pytest.raises(Boom):
            generate(pipe, call)
        handle.remove()
    assert torch.equal(generate(pipe, call), expected)


def test_interrupt_in_mid_run_leaves_no_state():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "taylorseer:interval=3")
    expected = generate(pipe, call)

    def stop(pipe, index, timestep, tensors):
        pipe._interrupt = index >= 3
        return tensors

    generate(pipe, call, callback_on_step_end=stop)
    assert torch.equal(generate(pipe, call), expected)


@pytest.mark.parametrize("spec", ["taylorseer:interval=3", "confidence_gated_taylor:threshold=1e9"])
def test_guidance_on_a_part_of_the_steps(spec):
    """Call parity would mix the branches here: after step 3 only `cond` runs."""
    pipe, call = tiny_wan()

    def cut(pipe, index, timestep, tensors):
        if index == 3:
            pipe._guidance_scale = 1.0
        return tensors

    ditaccel.accelerate(pipe, spec)
    generate(pipe, call, callback_on_step_end=cut, num_inference_steps=10)
    calls = ditaccel.report(pipe).calls
    assert [c.step for c in calls if c.branch == "cond"] == list(range(10))
    assert [c.step for c in calls if c.branch == "uncond"] == [0, 1, 2, 3]


@pytest.mark.parametrize("make", FAMILIES)
def test_two_pipelines_of_one_class_do_not_see_each_other(make):
    spec = "taylorseer:interval=3"
    one, call = make()
    two, _ = make()
    dense = generate(two, call)
    ditaccel.accelerate(one, spec)
    assert torch.equal(generate(two, call), dense)
    with pytest.raises(ditaccel.UsageError, match="not accelerated"):
        ditaccel.report(two)
    alone = generate(one, call)
    ditaccel.accelerate(two, "reuse:interval=2")
    generate(two, call)
    assert torch.equal(generate(one, call), alone)
    ditaccel.restore(one)
    assert torch.equal(generate(one, call), dense)
    ditaccel.restore(two)
    assert torch.equal(generate(two, call), dense)


def test_interleaved_pipelines_equal_separate_ones():
    """One pipeline runs inside the other's callback, step by step."""
    spec = "confidence_gated_taylor:threshold=1e9"
    outer, call = tiny_wan()
    inner, other = tiny_flux()
    ditaccel.accelerate(outer, spec)
    ditaccel.accelerate(inner, spec)
    expected, expected_inner = generate(outer, call), generate(inner, other)
    results = []

    def nested(pipe, index, timestep, tensors):
        results.append(generate(inner, other))
        return tensors

    assert torch.equal(generate(outer, call, callback_on_step_end=nested), expected)
    assert all(torch.equal(r, expected_inner) for r in results)


@pytest.mark.parametrize("make", [tiny_dit, tiny_wan, tiny_flux])
def test_copies_pickles_and_saved_folders_are_dense(make, tmp_path):
    pipe, call = make()
    dense = generate(pipe, call)
    names = list(pipe.transformer.state_dict())
    ditaccel.accelerate(pipe, "taylorseer:interval=3")
    fast = generate(pipe, call)
    twin = copy.deepcopy(pipe)
    assert torch.equal(generate(twin, call), dense)
    ditaccel.accelerate(twin, "reuse:interval=2")
    assert not torch.equal(generate(twin, call), dense)
    ditaccel.restore(twin)
    assert torch.equal(generate(twin, call), dense)
    again = pickle.loads(pickle.dumps(pipe.transformer))
    assert type(again) is type(pipe.transformer) and list(again.state_dict()) == names
    pipe.transformer.save_pretrained(tmp_path / "t")
    loaded = type(pipe.transformer).from_pretrained(tmp_path / "t")
    for name, value in loaded.state_dict().items():
        assert torch.equal(value, again.state_dict()[name])
    assert torch.equal(generate(pipe, call), fast), "the copy reached back into the original"


@pytest.mark.parametrize("order", ["compile first", "accelerate first"])
@pytest.mark.parametrize("make", [tiny_wan, tiny_flux])
def test_regional_compile_without_graph_breaks(make, order):
    pipe, call = make()
    spec = "confidence_gated_taylor:threshold=1e9"
    torch._dynamo.reset()
    ditaccel.accelerate(pipe, spec)
    expected = generate(pipe, call)
    ditaccel.restore(pipe)
    compile_blocks = lambda: pipe.transformer.compile_repeated_blocks(  # noqa: E731
        fullgraph=True, backend="eager"
    )
    if order == "compile first":
        compile_blocks()
        ditaccel.accelerate(pipe, spec)
    else:
        ditaccel.accelerate(pipe, spec)
        compile_blocks()
    torch.testing.assert_close(generate(pipe, call), expected, rtol=1e-4, atol=1e-4)
    assert ditaccel.report(pipe).forecasts > 0
    ditaccel.restore(pipe)
    block = next(iter(getattr(pipe.transformer, "blocks", pipe.transformer.children())))
    assert "ditaccel" not in repr(block.__dict__.get("_compiled_call_impl"))
    torch._dynamo.reset()


def compile_all(pipe, how):
    """Compile the transformer as a whole, in one graph a shape."""
    torch._dynamo.reset()
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    if how == "method":
        pipe.transformer.compile(backend=backend, fullgraph=True)
    else:
        pipe.transformer = torch.compile(pipe.transformer, backend=backend, fullgraph=True)
    return graphs


@pytest.mark.parametrize("how", ["method", "wrapper"])
@pytest.mark.parametrize(
    "setting",
    [
        "confidence_gated_taylor",
        "taylorseer",
        "adaptive_taylor:target=hidden",
        "lite_attention",
        "adaptive_taylor & svg2",
    ],
)
def test_whole_model_compile_is_refused_where_blocks_are_needed(how, setting):
    pipe, _ = tiny_wan()
    compile_all(pipe, how)
    with pytest.raises(
        ditaccel.UnsupportedError, match=r"compile_repeated_blocks.*or use .*target='output'"
    ):
        ditaccel.accelerate(pipe, setting)


@pytest.mark.parametrize("how", ["method", "wrapper"])
@pytest.mark.parametrize("make", [tiny_wan, tiny_flux, tiny_dit])
def test_outputs_of_a_transformer_compiled_as_a_whole_are_forecast(how, make):
    """One graph, as without us, and the results of the eager transformer."""
    pipe, call = make()
    spec = "taylorseer:interval=3,granularity=last_block,target=output"
    dense = generate(pipe, call)
    with ditaccel.accelerated(pipe, spec):
        expected = generate(pipe, call)
        calls = ditaccel.report(pipe).calls
    graphs = compile_all(pipe, how)
    compiled = pipe.transformer
    generate(pipe, call)
    alone = len(graphs)
    before = dict(compiled.__dict__)
    ditaccel.accelerate(pipe, spec)
    torch.testing.assert_close(generate(pipe, call), expected, rtol=1e-4, atol=1e-4)
    report = ditaccel.report(pipe)
    assert [c.action for c in report.calls] == [c.action for c in calls]
    assert report.forecasts > 0 and report.computed_share < 1
    assert len(graphs) == alone
    twin = copy.deepcopy(pipe)
    torch.testing.assert_close(generate(twin, call), dense, rtol=1e-4, atol=1e-4)
    ditaccel.restore(pipe)
    assert pipe.transformer is compiled and dict(compiled.__dict__) == before
    torch.testing.assert_close(generate(pipe, call), dense, rtol=1e-4, atol=1e-4)
    assert len(graphs) == alone
    torch._dynamo.reset()


def test_whole_model_compile_after_accelerate_is_said_and_can_be_undone():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    ditaccel.accelerate(pipe, "reuse:interval=2")
    pipe.transformer._compiled_call_impl = pipe.transformer._call_impl  # what compile() puts there
    assert torch.isfinite(generate(pipe, call)).all()
    assert "compiled as a whole after accelerate()" in str(ditaccel.report(pipe))
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


def test_module_granularity_refuses_blocks_compiled_later():
    pipe, call = tiny_wan()
    torch._dynamo.reset()
    ditaccel.accelerate(pipe, "taylorseer:interval=3")
    pipe.transformer.compile_repeated_blocks(fullgraph=True, backend="eager")
    for _ in range(2):  # patches are in front again after the first call, which changes nothing
        with pytest.raises(ditaccel.UnsupportedError, match="cannot look into compiled blocks"):
            generate(pipe, call)
    torch._dynamo.reset()


def test_bare_transformer():
    pipe, call = tiny_wan()
    transformer = pipe.transformer
    latents = torch.randn(1, 4, 2, 8, 8)

    def loop():
        x = latents
        for t in (900.0, 700.0, 500.0, 300.0, 100.0):
            for embeds in (call["prompt_embeds"], call["negative_prompt_embeds"]):
                v = transformer(x, torch.tensor([t]), embeds, return_dict=False)[0]
            x = x - 0.2 * v
        return x

    with torch.no_grad():
        dense = loop()
        ditaccel.accelerate(transformer, "taylorseer:interval=2")
        first, second = loop(), loop()
        assert torch.equal(first, second) and not torch.equal(first, dense)
        assert {c.branch for c in ditaccel.report(transformer).calls} == {"call0", "call1"}
        ditaccel.restore(transformer)
        assert torch.equal(loop(), dense)


def test_accelerated_restores_on_every_way_out():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    with pytest.raises(Boom), ditaccel.accelerated(pipe, "reuse:interval=2"):
        raise Boom
    assert torch.equal(generate(pipe, call), dense)


def test_fifty_rounds_do_not_grow_memory():
    pipe, call = tiny_wan(layers=2)
    call = {**call, "num_inference_steps": 3}

    def round_():
        ditaccel.accelerate(pipe, "taylorseer:interval=2")
        generate(pipe, call)
        ditaccel.restore(pipe)

    for _ in range(3):
        round_()
    gc.collect()
    before = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    for _ in range(50):
        round_()
    gc.collect()
    after = sum(isinstance(o, torch.Tensor) for o in gc.get_objects())
    assert after <= before


def test_no_registry_keeps_a_pipeline_alive():
    pipe, call = tiny_wan(layers=2)
    ditaccel.accelerate(pipe, "reuse:interval=2")
    generate(pipe, call)
    gone = weakref.ref(pipe.transformer)
    del pipe
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("make", [tiny_wan, tiny_wan22])
@pytest.mark.parametrize(
    "spec", ["taylorseer:interval=2", "adaptive_taylor:tolerance=1e9,guidance=difference"]
)
def test_generation_frees_its_state_when_it_ends(make, spec):
    pipe, call = make()
    ditaccel.accelerate(pipe, spec)
    generate(pipe, call)
    session = session_of({"transformer": pipe.transformer})
    assert sum(c.nbytes for c in session.caches.values()) == 0
    assert not any(c.guidance.leaders for c in session.caches.values())
    assert ditaccel.report(pipe).cache_bytes > 0


def test_mistakes_are_one_clear_line():
    from diffusers import DDIMScheduler, UNet2DConditionModel

    pipe, _ = tiny_wan()
    with pytest.raises(ditaccel.UsageError, match=r"not accelerated; call ditaccel\.accelerate"):
        ditaccel.report(pipe)
    with pytest.raises(ditaccel.ConfigError, match="no preset 'warp'"):
        ditaccel.accelerate(pipe, "warp")
    with pytest.raises(ditaccel.ConfigError, match="not a config of a caching method"):
        ditaccel.accelerate(pipe, cache=3)
    with pytest.raises(ditaccel.ConfigError, match="names neither a caching method"):
        ditaccel.accelerate(pipe, ditaccel.AccelerationConfig())
    with pytest.raises(ditaccel.UsageError, match="neither a diffusers pipeline"):
        ditaccel.accelerate("pipe")
    unet = UNet2DConditionModel(
        block_out_channels=(4,),
        layers_per_block=1,
        norm_num_groups=4,
        down_block_types=("DownBlock2D",),
        up_block_types=("UpBlock2D",),
        mid_block_type=None,
        cross_attention_dim=8,
    )

    old = SimpleNamespace(components={"unet": unet, "scheduler": DDIMScheduler()})
    with pytest.raises(ditaccel.UnsupportedError, match=r"has a UNet \(UNet2DConditionModel\) and"):
        ditaccel.accelerate(old)
    with pytest.raises(ditaccel.UnsupportedError, match="UNet2DConditionModel is a UNet; "):
        ditaccel.accelerate(unet)
    misnamed = SimpleNamespace(components={"transformer": unet})
    with pytest.raises(ditaccel.UnsupportedError, match="has a UNet"):
        ditaccel.accelerate(misnamed)
    with pytest.raises(ditaccel.UnsupportedError, match=r"Linear\.forward has no argument"):
        ditaccel.accelerate(torch.nn.Linear(2, 2))
    short, _ = tiny_wan(layers=1)
    with pytest.raises(ditaccel.UnsupportedError, match=r"has 1 block\(s\)"):
        ditaccel.accelerate(short)


def test_failed_accelerate_leaves_nothing():
    pipe, _ = tiny_wan()
    clean = traces(pipe)
    pipe.transformer.blocks[3].compile(backend="eager")
    compiled = traces(pipe)
    with pytest.raises(ditaccel.UnsupportedError, match="cannot look into compiled blocks"):
        ditaccel.accelerate(pipe, "taylorseer:interval=2")
    assert traces(pipe) == compiled != clean


def test_report_is_readable_and_exports():
    pipe, call = tiny_wan()
    ditaccel.accelerate(pipe, "confidence_gated_taylor:threshold=1e9")
    assert "No transformer call was seen" in str(ditaccel.report(pipe))
    generate(pipe, call)
    report = ditaccel.report(pipe)
    text = str(report)
    assert "###....#" in text and "transformer cond" in text
    data = report.to_dict()
    assert data["computed_share"] == report.computed_share == pytest.approx(0.625)
    assert io.StringIO(report.to_json()).read().startswith("{")
