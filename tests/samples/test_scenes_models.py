"""scenes-flux and scenes-wan are stock pipelines of the size that they promise."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline


@pytest.fixture
def export(script, monkeypatch, tmp_path):
    module = script("scenes.export")
    monkeypatch.setattr(module, "RUNS", tmp_path)
    return module


def grown(model):
    """Zeroed layers let nothing through; a little weight does."""
    with torch.no_grad():
        for parameter in model.parameters():
            if not parameter.any():
                parameter.normal_(std=0.05)
    return model


def test_an_exported_flux_loads_with_the_stock_class(script, export, tmp_path):
    torch.manual_seed(0)
    parts = grown(script("scenes.flux").build_flux())
    pipe = export.flux_pipeline(parts, script("scenes.vae").build_vae())
    folder = export.write(pipe, "scenes-flux", tmp_path / "model", tmp_path / "prompts.txt")
    sheet = json.loads((folder / "sample.json").read_text())
    assert (folder / sheet["prompts"]).resolve() == tmp_path / "prompts.txt"
    loaded = DiffusionPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    loaded.set_progress_bar_config(disable=True)
    seen = []
    loaded.transformer.register_forward_pre_hook(
        lambda _, __, kwargs: seen.append(kwargs["hidden_states"].shape), with_kwargs=True
    )
    call = {**sheet["call"], "num_inference_steps": 1, "generator": torch.Generator()}
    picture = loaded("a red ball", negative_prompt="", **call).images[0]
    assert picture.size == (128, 128)
    assert seen == [(1, 1024, 24)] * 2
    assert sum(p.numel() for p in loaded.transformer.parameters()) < 4e6


def test_wan_samples_with_unipc_and_over_six_thousand_tokens(script, export):
    torch.manual_seed(0)
    video = script("scenes.video")
    parts = grown(script("scenes.wan").build_wan())
    pipe = export.wan_pipeline(parts, video.build_video_vae())
    pipe.set_progress_bar_config(disable=True)
    assert type(pipe.scheduler).__name__ == "UniPCMultistepScheduler"
    call = export.CALLS["scenes-wan"]
    frames = (call["num_frames"] - 1) // video.FRAMES_A_LATENT + 1
    tokens = frames * (call["height"] // video.SHRINK // 2) * (call["width"] // video.SHRINK // 2)
    assert frames == video.LATENT_FRAMES
    assert tokens >= 6000
    small = call | {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 2}
    clip = pipe("a red ball", negative_prompt="", generator=torch.Generator(), **small).frames
    assert clip.shape == (1, 5, 32, 32, 3)


def test_clips_are_learnt_from_frames_parts_and_wholes(script, monkeypatch, tmp_path):
    pools, wan, video = script("scenes.pools"), script("scenes.wan"), script("scenes.video")
    monkeypatch.setattr(pools, "FOLDER", tmp_path)
    # Six latent frames stand for a clip here.
    monkeypatch.setattr(pools, "FRAMES", 11)
    monkeypatch.setattr(pools, "LATENT_FRAMES", 6)
    torch.manual_seed(0)
    vae = video.build_video_vae().eval()
    monkeypatch.setattr(pools, "averaged", lambda name, _: vae)
    pools.extend_clips(2, single=True, chunk=2)
    pools.extend_clips(1, single=False, chunk=1)
    images, clips = pools.Clips(single=True), pools.Clips(single=False)
    assert images.batch(2, torch.Generator())[0].shape == (2, 16, 1, 32, 32)
    assert clips.batch(1, torch.Generator())[0].shape == (1, 16, 6, 32, 32)
    model = wan.build_wan()
    for plan in ((2, 1), (1, 3)):
        loss = wan.wan_loss(images, lambda: clips, lambda step, plan=plan: plan)
        first, second = (
            loss(model, 0, torch.Generator().manual_seed(4)).detach() for _ in range(2)
        )
        assert torch.equal(first, second)
        assert torch.isfinite(first)
