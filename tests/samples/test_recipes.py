"""The recipes of `samples/recipes` do on tiny pipelines what their first lines say."""

import importlib
import multiprocessing
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from checkout import ROOT
from diffusers import FluxImg2ImgPipeline, FluxPipeline
from PIL import Image
from tiny import VARIANTS, generate, tiny_flux, tiny_wan
from tiny.flux import tiny_controlnet

import ditaccel

FOLDER = ROOT / "samples" / "recipes"
NAMES = sorted(path.stem for path in FOLDER.glob("*.py") if path.stem != "shared")
STEPS = {"num_inference_steps": 12}
# Those that a clone can run: no file or model from elsewhere, one process, nothing compiled.
OFFLINE = ("from_pipe", "own_loop", "small_gpu")


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Import a recipe by name, as Python does where it is run as a script."""
    monkeypatch.syspath_prepend(str(FOLDER))
    yield importlib.import_module
    for name in (*NAMES, "shared"):
        sys.modules.pop(name, None)


def forecasts(pipe: object) -> int:
    """Forecast calls of the last generation; fails where there are none."""
    calls = ditaccel.report(pipe).last_generation().calls
    found = sum(call.action == "forecast" for call in calls)
    assert found > 0
    return found


def test_every_recipe_is_listed_and_tested() -> None:
    text, tests = (FOLDER / "README.md").read_text(), Path(__file__).read_text()
    for name in NAMES:
        assert f"({name}.py)" in text, name
        assert f'recipe("{name}")' in tests, name
        first = (FOLDER / f"{name}.py").read_text().split('"""')[1]
        assert f"samples/recipes/{name}.py" in first, "it begins with the command that runs it"


def test_lora(recipe, tmp_path: Path) -> None:
    from peft import LoraConfig, get_peft_model_state_dict

    other, _ = tiny_flux()
    config = LoraConfig(r=2, init_lora_weights=False, target_modules=["to_q", "to_k"])
    other.transformer.add_adapter(config)
    layers = get_peft_model_state_dict(other.transformer)
    FluxPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    pipe, call = tiny_flux()
    call |= STEPS
    dense = generate(pipe, call)
    recipe("lora").with_lora(pipe, str(tmp_path))
    whole = generate(pipe, call)
    assert forecasts(pipe) and not torch.equal(whole, dense)
    pipe.set_adapters("style", 0.5)
    assert not torch.equal(generate(pipe, call), whole)
    pipe.set_adapters("style", 1.0)
    assert torch.equal(generate(pipe, call), whole), "the former weights left something behind"
    pipe.unload_lora_weights()
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


def test_compiled(recipe) -> None:
    pipe, call = tiny_flux()
    ditaccel.accelerate(pipe, "balanced")
    expected = generate(pipe, call | STEPS)
    ditaccel.restore(pipe)
    try:
        recipe("compiled").compiled(pipe, backend="eager")
        torch.testing.assert_close(generate(pipe, call | STEPS), expected, rtol=1e-4, atol=1e-4)
        assert forecasts(pipe)
    finally:
        torch._dynamo.reset()


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao is not installed")
@pytest.mark.parametrize("kind", ["int8", pytest.param("fp8", marks=pytest.mark.slow)])
def test_quantized(kind: str, recipe) -> None:
    pipe, call = tiny_flux()
    dense = generate(pipe, call | STEPS)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        recipe("quantized").quantized(pipe, kind)
    generate(pipe, call | STEPS)
    assert forecasts(pipe)
    ditaccel.restore(pipe)
    rough = generate(pipe, call | STEPS)
    assert not torch.equal(rough, dense), "nothing was quantized"
    with ditaccel.accelerated(pipe, "confidence_gated_taylor:threshold=0"):
        assert torch.equal(generate(pipe, call | STEPS), rough)


def test_small_gpu(recipe) -> None:
    pipe, call = tiny_flux()
    ditaccel.accelerate(pipe, "balanced")
    expected = generate(pipe, call | STEPS)
    ditaccel.restore(pipe)
    recipe("small_gpu").offloaded(pipe, torch.device("cpu"))
    assert torch.equal(generate(pipe, call | STEPS), expected)
    assert forecasts(pipe) and "500MB" in str(ditaccel.report(pipe).config)


def _rank(rank: int, module: ModuleType, folder: Path) -> None:
    """One of two ranks: `enable_parallelism` divides by a count of 0 devices on a CPU."""
    import two_ranks

    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    where = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=where, rank=rank, world_size=2)
    pipe, call = two_ranks.build("wan")

    def enable_parallelism(config):
        assert config.ulysses_degree == 2
        two_ranks.split_over_two(pipe.transformer, rank)

    pipe.transformer.enable_parallelism = enable_parallelism
    module.split(pipe)
    result = generate(pipe, call | STEPS)
    torch.save({"result": result, "forecasts": forecasts(pipe)}, folder / f"{rank}.pt")
    torch.distributed.destroy_process_group()


@pytest.mark.slow
def test_two_gpus(recipe, tmp_path: Path) -> None:
    import two_ranks

    module = recipe("two_gpus")
    fork = multiprocessing.get_context("fork")
    ranks = [fork.Process(target=_rank, args=(rank, module, tmp_path)) for rank in range(2)]
    try:
        for each in ranks:
            each.start()
        for each in ranks:
            each.join()
            assert each.exitcode == 0, "its traceback is in the captured stderr"
    finally:
        for each in ranks:
            each.kill()
    one, other = (torch.load(tmp_path / f"{rank}.pt") for rank in range(2))
    assert torch.equal(one["result"], other["result"]) and one["forecasts"] == other["forecasts"]
    pipe, call = two_ranks.build("wan")
    ditaccel.accelerate(pipe, "balanced")
    alone = generate(pipe, call | STEPS)
    torch.testing.assert_close(one["result"], alone, rtol=1e-3, atol=1e-3)


def test_controlnet(recipe) -> None:
    pipe, call = tiny_controlnet()
    image = call.pop("control_image")
    dense = generate(pipe, call | STEPS, control_image=image, controlnet_conditioning_scale=0.6)
    call = recipe("controlnet").controlled(pipe, call | STEPS, image)
    result = generate(pipe, call)
    assert forecasts(pipe) and not torch.equal(result, dense)
    other = generate(pipe, call, control_image=1 - image)
    assert not torch.equal(other, result), "the control image must matter"
    ditaccel.restore(pipe)
    assert torch.equal(generate(pipe, call), dense)


def test_image_to_video(recipe) -> None:
    pipe, call = VARIANTS["wan_i2v"]()
    image = call.pop("image")
    call = recipe("image_to_video").animated(pipe, call | STEPS, image)
    result = generate(pipe, call)
    assert forecasts(pipe)
    other = Image.new("RGB", image.size, (10, 200, 30))
    assert not torch.equal(generate(pipe, call, image=other), result)
    assert torch.equal(generate(pipe, call), result)


def test_own_loop(recipe) -> None:
    """Along the pipeline's own noise levels it makes what the pipeline makes."""
    pipe, call = tiny_wan()
    call |= STEPS
    noise = torch.randn(1, 4, 2, 4, 4, generator=torch.Generator().manual_seed(0))
    dense = generate(pipe, call, latents=noise)
    sigmas = pipe.scheduler.sigmas.tolist()
    words = call["prompt_embeds"], call["negative_prompt_embeds"]
    sample, transformer = recipe("own_loop").sample, pipe.transformer
    by_hand = sample(transformer, noise, sigmas, *words, guidance=call["guidance_scale"])
    torch.testing.assert_close(by_hand, dense, rtol=1e-4, atol=1e-4)
    ditaccel.accelerate(transformer, "balanced", sigmas=sigmas)
    faster = sample(transformer, noise, sigmas, *words, guidance=call["guidance_scale"])
    assert forecasts(transformer) and not torch.equal(faster, by_hand)


def test_from_pipe(recipe) -> None:
    img2img, call = VARIANTS["flux_img2img"]()
    pipe = FluxPipeline.from_pipe(img2img)
    words = {name: value for name, value in call.items() if name not in ("image", "strength")}
    words |= STEPS
    refiner = recipe("from_pipe").with_refiner(pipe)
    assert isinstance(refiner, FluxImg2ImgPipeline) and refiner.transformer is pipe.transformer
    assert ditaccel.is_accelerated(refiner)
    draft = generate(pipe, words)
    assert forecasts(pipe)
    refined = generate(refiner, call | STEPS)
    assert forecasts(refiner)
    assert torch.equal(generate(pipe, words), draft) and torch.equal(
        generate(refiner, call | STEPS), refined
    )
    ditaccel.restore(refiner)
    assert not ditaccel.is_accelerated(pipe)


def worker_of(module: ModuleType) -> Any:
    """A worker of a tiny pipeline that makes pictures; it has no text encoder."""
    img2img, call = VARIANTS["flux_img2img"]()
    pipe = FluxPipeline.from_pipe(img2img)
    pipe.set_progress_bar_config(disable=True)
    words = call["prompt_embeds"], call["pooled_prompt_embeds"], torch.zeros(6, 3)
    pipe.encode_prompt = lambda **_: words
    return module.Worker(pipe, {"height": 22, "width": 22, "num_inference_steps": 16})


def test_serving_without_a_server(recipe) -> None:
    worker = worker_of(recipe("serving"))
    shares, images = {}, {}
    for quality in ("dense", "safe", "balanced", "fast", "safe", "dense"):
        image, share = worker.generate("a red circle", quality, seed=3)
        assert shares.setdefault(quality, share) == share
        assert images.setdefault(quality, image.tobytes()) == image.tobytes()
        assert not ditaccel.is_accelerated(worker.pipe)
    assert shares["dense"] == 1 and shares["fast"] < 1 and shares["fast"] <= shares["safe"]
    with pytest.raises(ditaccel.ConfigError, match="best"):
        worker.generate("a red circle", "best")
    assert not worker.lock.locked()


@pytest.mark.skipif(find_spec("fastapi") is None, reason="FastAPI is not installed")
def test_serving(recipe) -> None:
    from fastapi.testclient import TestClient

    module = recipe("serving")
    worker = worker_of(module)
    client = TestClient(module.application(worker))
    answer = client.post("/generate", json={"prompt": "a red circle", "quality": "fast"})
    assert answer.status_code == 200 and answer.content.startswith(b"\x89PNG")
    assert 0 < float(answer.headers["X-Computed-Share"]) < 1
    wrong = client.post("/generate", json={"prompt": "a red circle", "quality": "best"})
    assert wrong.status_code == 422 and "balanced" in wrong.text


@pytest.mark.slow
@pytest.mark.parametrize("name", OFFLINE)
def test_it_runs_from_a_clone(name: str, tmp_path: Path) -> None:
    command = [sys.executable, str(FOLDER / f"{name}.py"), "--steps", "10"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "ditaccel report" in done.stdout
