"""target="output": the transformer's own output is forecast, and nothing of it runs meanwhile."""

import pytest
import torch
from tiny import generate, tiny_dit, tiny_flux, tiny_wan

import ditaccel

LINE = "step_mask:steps=[0,1],target=output"


def watched(pipe):
    """Calls of the first layer, of the last layer, and outputs that the scheduler was given."""
    first = pipe.transformer.x_embedder if hasattr(pipe.transformer, "x_embedder") else None
    first = (
        first or getattr(pipe.transformer, "patch_embedding", None) or pipe.transformer.pos_embed
    )
    ran, given = [], []
    first.register_forward_hook(lambda *_: ran.append(1))
    inner = pipe.scheduler.step

    def step(output, *args, **kwargs):
        given.append(output.clone())
        return inner(output, *args, **kwargs)

    pipe.scheduler.step = step
    return ran, given


@pytest.mark.parametrize("make", [tiny_dit, tiny_flux, tiny_wan])
def test_outputs_lie_on_a_line_and_no_layer_runs(make):
    pipe, call = make()
    ran, given = watched(pipe)
    with ditaccel.accelerated(pipe, LINE):
        generate(pipe, call, num_inference_steps=6)
        branches = len({c.branch for c in ditaccel.report(pipe).calls})
        assert len(ran) == 2 * branches
        assert "2 outputs in each branch" in str(ditaccel.report(pipe))
    for index in (2, 5):
        expected = given[1] + (index - 1) * (given[1] - given[0])
        torch.testing.assert_close(given[index], expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("return_dict", [True, False])
def test_a_bare_transformer_returns_what_it_would(return_dict):
    pipe, _ = tiny_wan()
    transformer = pipe.transformer
    text = torch.randn(1, 4, transformer.config.text_dim)

    def call(time, **kwargs):
        sample = torch.full((1, transformer.config.in_channels, 1, 4, 4), time / 1000)
        return transformer(sample, torch.tensor([time]), text, **kwargs)

    with torch.no_grad(), ditaccel.accelerated(transformer, LINE):
        outputs = []  # (a comprehension would be a loop of its own, which ends with it)
        for t in (900.0, 600.0, 300.0):
            outputs.append(call(t, return_dict=return_dict))
        # another form than any that was computed: the transformer runs, its blocks do not
        other = call(100.0, return_dict=not return_dict)
        actions = [c.action for c in ditaccel.report(transformer).calls]
    assert actions == ["compute", "compute", "forecast", "forecast"]
    assert len({type(o) for o in outputs}) == 1 and type(other) is not type(outputs[0])
    assert len(outputs[2]) == 1
    step = outputs[1][0] - outputs[0][0]
    torch.testing.assert_close(outputs[2][0], outputs[1][0] + step)
    torch.testing.assert_close(other[0], outputs[1][0] + 2 * step)


def test_memory_is_counted_and_budgeted_in_outputs():
    pipe, call = tiny_wan()
    size = generate(pipe, call, output_type="latent").numel() * 4
    spec = "taylorseer:interval=2,granularity=last_block,target=output"
    with ditaccel.accelerated(pipe, spec):
        generate(pipe, call)
        assert ditaccel.report(pipe).cache_bytes == 2 * 2 * size
    tight = f"{spec},memory_budget={2 * size},on_budget=downgrade"
    with ditaccel.accelerated(pipe, tight):
        with pytest.warns(UserWarning, match="outputs to forecast from; 2 branches.*order=0"):
            generate(pipe, call)
        assert ditaccel.report(pipe).cache_bytes == 2 * size


def test_module_granularity_has_no_output_to_forecast():
    with pytest.raises(ditaccel.ConfigError, match="needs granularity='last_block'"):
        ditaccel.TaylorSeerConfig(target="output")


def test_non_finite_outputs_are_said():
    pipe, call = tiny_wan()
    torch.nn.init.constant_(pipe.transformer.proj_out.bias, float("nan"))
    with (
        ditaccel.accelerated(pipe, "step_mask:steps=[0,1,4],target=output"),
        pytest.warns(UserWarning, match="non-finite"),
    ):
        generate(pipe, call)
