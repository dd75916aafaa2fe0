"""The evaluation and the tuner on a GPU: paired, and timed to the end of the device's work."""

import json

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler
from ditaccel.eval.measure.counting import counted
from ditaccel.eval.options import Options
from ditaccel.eval.runs import evaluate
from tiny import generate, tiny_dit, tiny_wan

import ditaccel
from ditaccel.io.files import read_json, read_lines
from ditaccel.tuning.recording import record


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("gpu") / "tiny-dit"
    pipe, _ = tiny_dit()
    pipe.save_pretrained(folder)
    sheet = {"family": "dit", "call": {"guidance_scale": 3.0, "num_inference_steps": 6}}
    (folder / "sample.json").write_text(json.dumps(sheet))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_paired_run(model, device, tmp_path, dtype):
    options = Options(fewer=[3], features="none", quiet=True, device=device.type, dtype=dtype)
    configs = ["taylorseer:interval=2", "peer/first_block_cache:threshold=1e9"]
    out = evaluate(str(model), configs, ["1", "2"], [0], tmp_path / "out", options)
    run, lines = read_json(out / "run.json"), read_lines(out / "results.jsonl")
    assert run["device"]["type"] == device.type
    for line in lines:
        assert 0 < line["denoise_seconds"] <= line["seconds"]
        if device.type == "cuda":
            assert line["peak_memory_bytes"] > 0
            for pair in line["pairs"]:
                assert 0 < pair["row"]["device"] <= pair["row"]["seconds"] + 0.01
        if line["config"] == "dense":
            assert line["metrics"]["identical"]
    assert read_json(out / "summary.json")


def test_denoising_is_timed_on_the_device(placed, device):
    """A kernel that is queued in the last call counts, although its launch returns at once."""
    if device.type != "cuda":
        pytest.skip("only a device queues work")
    pipe, call = placed(tiny_wan)
    generate(pipe, call)
    handle = pipe.transformer.register_forward_hook(
        lambda module, args, output: torch.cuda._sleep(20_000_000)
    )
    with counted(pipe) as tally:
        generate(pipe, call)
    handle.remove()
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    torch.cuda._sleep(20_000_000)
    end.record()
    end.synchronize()
    one = start.elapsed_time(end) / 1000
    assert tally.denoise_seconds > 0.9 * one * (len(tally.calls) - 1)


def test_tune(placed, device):
    pipe, call = placed(lambda: tiny_dit(scheduler=DDIMScheduler(clip_sample=False)))
    dense = generate(pipe, call)
    calls = [{"class_labels": [3]}, {"class_labels": [5]}]
    target = ditaccel.Target(computed_share=0.5, statistic="min")
    config = ditaccel.tune(pipe, calls, target, num_inference_steps=12)
    assert len(config.cache.steps) <= 6
    assert torch.equal(generate(pipe, call), dense)


def test_recorded_products_are_those_of_the_cpu(placed, device):
    from ditaccel.core.transformers import transformers_of

    found = []
    for build in (tiny_wan, lambda: placed(tiny_wan)):
        pipe, call = build()
        transformers, adapter = transformers_of(pipe)
        run = lambda pipe=pipe, call=call: generate(pipe, call)  # noqa: E731
        found.append(record(pipe, transformers, adapter, run, budget=2000)[1])
    np.testing.assert_allclose(found[0].first, found[1].first, rtol=1e-2, atol=1e-4)
