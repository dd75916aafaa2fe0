"""scenes-features, scenes-flux-turbo and scenes-wan22: losses, links and cards, on tiny models."""

import json

import pytest
import torch
from diffusers import DiffusionPipeline, FluxTransformer2DModel, WanTransformer3DModel
from PIL import Image

from .test_scenes_models import grown


def test_the_judge_learns_every_cell(script):
    judge = script("scenes.judge")
    torch.manual_seed(0)
    model, loss = judge.build_judge(), judge.judge_loss(2)
    first, second = (loss(model, 0, torch.Generator().manual_seed(4)) for _ in range(2))
    assert torch.equal(first, second)
    # By chance: the logarithms of the numbers of classes, 12 kinds, 11 materials, 9 colours.
    assert float(first.detach()) == pytest.approx(7.08, abs=0.8)
    assert sum(p.numel() for p in model.parameters()) < 0.3e6
    text = judge.judge_card(model.eval(), 20, count=2)
    assert "20 steps" in text and text.count(" %") == 6


@pytest.fixture
def small_flux(script, monkeypatch):
    """scenes-flux with one block of each kind."""
    flux = script("scenes.flux")
    torch.manual_seed(0)
    parts = flux.build_flux()
    parts["transformer"].transformer_blocks = parts["transformer"].transformer_blocks[:1]
    parts["transformer"].single_transformer_blocks = parts["transformer"].single_transformer_blocks[
        :1
    ]
    parts["transformer"].register_to_config(num_layers=1, num_single_layers=1)
    return grown(parts)


@pytest.fixture
def teacher(script, monkeypatch, tmp_path, small_flux):
    """An exported small scenes-flux, and the folders of pools and runs."""
    export, turbo = script("scenes.export"), script("scenes.turbo")
    monkeypatch.setattr(export, "RUNS", tmp_path)
    monkeypatch.setattr(script("pools"), "FOLDER", tmp_path / "pools")
    monkeypatch.setattr(script("pools"), "compile_blocks", lambda model: None)
    pipe = export.flux_pipeline(small_flux, script("scenes.vae").build_vae())
    folder = export.write(pipe, "scenes-flux", tmp_path / "scenes-flux", tmp_path / "prompts.txt")
    ways = turbo.SceneTrajectories
    monkeypatch.setattr(ways, "TEACHER", folder)
    monkeypatch.setattr(ways, "CHUNK", 2)
    monkeypatch.setattr(ways, "STEPS", 2)
    monkeypatch.setattr(ways, "_SUBSTEPS", 1)
    return ways


def test_the_student_learns_the_ways_of_its_teacher(script, teacher, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"scenes_pool\.py ways N"):
        teacher()
    teacher.record(2)
    state = torch.load(next((tmp_path / "pools").iterdir()), weights_only=True)
    assert state["nodes"].shape == (3, 2, 1024, 24)
    assert not any(script("scenes.words").held_out(text) for text in state["texts"])
    denoisers = script("denoisers")
    student = denoisers.build_few(teacher)
    assert student.training
    loss = denoisers.few_loss(teacher(), 1)
    value = loss(student, 0, torch.Generator().manual_seed(1))
    assert torch.isfinite(value)
    value.backward()


def test_a_teacher_that_is_missing_is_named(teacher, monkeypatch, tmp_path):
    monkeypatch.setattr(teacher, "TEACHER", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match=r"scenes_export\.py scenes-flux"):
        teacher.teacher()


def test_turbo_shares_what_is_its_teachers(script, teacher, tmp_path):
    export = script("scenes.export")
    folder = export.write(
        teacher.teacher(), "scenes-flux-turbo", tmp_path / "scenes-flux-turbo", tmp_path / "p.txt"
    )
    for part in ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2"):
        assert (folder / part).readlink().parts[:2] == ("..", "scenes-flux")
    assert not (folder / "transformer").is_symlink()
    pipe = DiffusionPipeline.from_pretrained(folder)
    assert type(pipe.transformer) is FluxTransformer2DModel
    sheet = json.loads((folder / "sample.json").read_text())
    assert sheet["family"] == "flux" and "true_cfg_scale" not in sheet["call"]
    # Written again over what is there, links included.
    export.write(pipe, "scenes-flux-turbo", folder, tmp_path / "p.txt")
    assert (folder / "vae").is_symlink() and (tmp_path / "scenes-flux" / "vae").is_dir()


@pytest.fixture
def small_wan(script, monkeypatch, tmp_path):
    """Builds scenes-wan with one block."""
    module = script("scenes.wan")
    build = module.build_wan

    def small():
        model = build()
        model["transformer"].blocks = model["transformer"].blocks[:1]
        model["transformer"].register_to_config(num_layers=1)
        return model

    for name in ("scenes.wan", "scenes.experts", "scenes.export"):
        monkeypatch.setattr(script(name), "build_wan", small)
    monkeypatch.setattr(script("scenes.export"), "RUNS", tmp_path)
    return small


class Clips:
    """Noise in place of clips of six latent frames."""

    def __init__(self, scenes):
        self.scenes = scenes

    def batch(self, n, generator):
        return torch.randn(n, 16, 6, 32, 32, generator=generator), self.scenes[:n]


def test_experts_are_taught_on_their_own_noise_levels(script, small_wan, monkeypatch):
    experts, world = script("scenes.experts"), script("scenes.world")
    clips = Clips(world.sample_scenes(2, torch.Generator().manual_seed(0), moving=True))
    torch.manual_seed(0)
    whole = small_wan()
    monkeypatch.setattr(experts, "averaged", lambda name, _: whole)
    model = experts.build_expert()
    experts.from_wan(model)
    assert "seen" not in model
    assert torch.equal(model["transformer"].proj_out.weight, whole["transformer"].proj_out.weight)
    times = []
    model["transformer"].register_forward_pre_hook(lambda _, args: times.append(args[1]))
    for high in (True, False):
        loss = experts.expert_loss(clips, high=high, plan=lambda step: (2, 3))
        loss(model, 0, torch.Generator().manual_seed(2)).backward()
        assert all(p.grad is None for p in model["text_encoder"].parameters())
    boundary = 1000 * script("experts").BOUNDARY
    assert times[0].min() >= boundary >= times[1].max()
    assert {length for _, length in map(experts.curriculum, range(12))} == {6, 24}


def test_two_experts_are_one_pipeline_that_shares_the_rest(script, small_wan, tmp_path):
    export, video = script("scenes.export"), script("scenes.video")
    torch.manual_seed(0)
    parts, vae = grown(small_wan()), video.build_video_vae()
    export.write(
        export.wan_pipeline(parts, vae), "scenes-wan", tmp_path / "scenes-wan", tmp_path / "p"
    )
    low = grown(small_wan())["transformer"]
    pipe = export.wan_pipeline(parts, vae, low)
    folder = export.write(pipe, "scenes-wan22", tmp_path / "scenes-wan22", tmp_path / "p")
    assert (folder / "vae").is_symlink() and not (folder / "transformer_2").is_symlink()
    loaded = DiffusionPipeline.from_pretrained(folder)
    assert loaded.config.boundary_ratio == 0.875
    assert type(loaded.transformer_2) is WanTransformer3DModel
    loaded.set_progress_bar_config(disable=True)
    call = json.loads((folder / "sample.json").read_text())["call"]
    call |= {"height": 32, "width": 32, "num_frames": 5, "num_inference_steps": 4}
    called = []
    for module in (loaded.transformer, loaded.transformer_2):
        module.register_forward_pre_hook(lambda m, *_: called.append(m))
    loaded("a red ball", negative_prompt="", output_type="latent", **call)
    assert called[0] is loaded.transformer and called[-1] is loaded.transformer_2


MEASURED = {
    "prompts": 2,
    "steps": 50,
    "random": False,
    "mass": 0.9,
    "change": {"start": 0.2, "middle": 0.123, "end": None},
    "weights": {"start": [1.5, -0.5], "middle": [1.3, -0.3], "end": None},
    "magcache": {"middle": 0.0148, "ratios": []},
    "half_steps": [20.0, 24.0],
    "taylorseer": {"spec": "taylorseer", "psnr": [23.0, 25.0], "speed": 2.08},
    "noise_floor": {"dtype": "bfloat16", "psnr": [40.0]},
    "attention": [{"density": d, "overlap": 0.9} for d in (0.2, 0.3, 0.5)],
}


def test_a_card_has_what_was_measured_beside_targets_and_real_models(script, small_flux, tmp_path):
    card, export = script("scenes.card"), script("scenes.export")
    rows = {row[0]: row[1:] for row in card.figures(MEASURED, picture=False)}
    assert rows["change from step to step (start / middle / end)"][0] == "0.200 / 0.123 / -"
    assert rows["half the steps"][:2] == ("22.0 dB (worst 20.0)", "-")
    assert rows["tiles for 90% of the attention (median of the heads)"][1] == "<= 40 %"
    pipe = export.flux_pipeline(small_flux, script("scenes.vae").build_vae())
    (tmp_path / "card").mkdir()
    page, images = Image.new("RGB", (16, 16)), torch.rand(1, 3, 128, 128)
    with pytest.raises(FileNotFoundError, match="ditaccel bench trajectory"):
        card.write_card(pipe, "scenes-flux", tmp_path, images, page, ["a red ball"])
    (tmp_path / "card" / "trajectory.json").write_text(json.dumps(MEASURED))
    log = {"step": 620, "minutes": 12.4, "loss": [[20, 60.0, 1.5], [40, 120.0, 1.2]]}
    (tmp_path / "card" / "training.json").write_text(json.dumps(log))
    text = card.write_card(pipe, "scenes-flux", tmp_path, images, page, ["a red ball"]).read_text()
    assert "| half the steps | 22.0 dB (worst 20.0) | <= 26 dB | FLUX.1-dev 15.6 dB |" in text
    assert "12 minutes on one CPU thread (620 steps)" in text
    assert "not trained yet" in text and "look random" not in text
    (tmp_path / "card" / "trajectory.json").write_text(json.dumps(MEASURED | {"random": True}))
    path = card.write_card(pipe, "scenes-flux", tmp_path, images, page, ["a red ball"])
    assert "weights look random" in path.read_text()
