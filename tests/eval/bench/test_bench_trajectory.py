"""The trajectory bench: figures on made-up outputs, and a run on a tiny random model."""

import json

import pytest
import torch
from ditaccel.eval.bench import trajectory, trajectory_stats
from ditaccel.eval.bench.trajectory_stats import AttentionWatcher, Trajectory, as_initialised
from ditaccel.pipelines.adapter import BlockContract, FamilyAdapter
from torch import nn

from ditaccel.cli import main


def fed(outputs):
    found = Trajectory()
    found.begin()
    for output in outputs:
        found.add(output, torch.zeros_like(output))
    return found


def test_outputs_on_a_line_are_foretold_by_two_and_minus_one():
    generator = torch.Generator().manual_seed(0)
    start, slope = torch.randn(2, 1, 64, generator=generator)
    found = fed([start + k * slope for k in range(10)])
    assert found.weights(0, 1) == pytest.approx((2.0, -1.0), abs=1e-5)


def test_outputs_that_wander_are_foretold_by_the_newest_alone():
    generator = torch.Generator().manual_seed(0)
    steps = torch.randn(40, 1, 4096, generator=generator)
    newest, older = fed(list(steps.cumsum(0))).weights(0.3, 1)
    assert newest == pytest.approx(1.0, abs=0.03)
    assert older == pytest.approx(0.0, abs=0.03)


def test_change_is_relative_to_the_newer_output():
    found = fed([torch.full((1, 4), float(2**k)) for k in range(5)])
    assert found.change(0, 1) == pytest.approx(0.5)
    assert found.change(0, 0.1) is None


def test_a_second_run_does_not_follow_on_the_first():
    found = fed([torch.ones(1, 4)] * 3)
    found.begin()
    found.add(torch.full((1, 4), 100.0), torch.zeros(1, 4))
    assert found.change(0, 1) is None or found.change(0, 1) == 0


def test_the_scheduler_is_put_back():
    class Scheduler:
        def step(self, model_output, timestep, sample):
            return model_output

    scheduler, seen = Scheduler(), Trajectory()
    with trajectory_stats.watched(scheduler, seen):
        scheduler.step(torch.ones(1, 4), 1, torch.ones(1, 4))
    assert seen.steps == 1
    assert not vars(scheduler)


def test_initial_weights_are_told_from_trained_ones():
    layer = nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))
    assert as_initialised(layer)
    with torch.no_grad():
        for part in layer:
            part.weight[0, 0] = 1.0
    assert not as_initialised(layer)


@pytest.mark.parametrize(("steps", "share"), [(50, 1 / 2.1), (28, 1 / 2.1), (20, 1 / 2.1)])
def test_taylorseer_computes_about_the_wanted_share(steps, share):
    options = dict(o.split("=") for o in trajectory.taylorseer_at(2.1, steps)[11:].split(","))
    computed = int(options["warmup"]) + (steps - int(options["warmup"])) // int(options["interval"])
    assert computed / steps == pytest.approx(share, abs=0.5 / steps + 0.01)


def test_attention_on_one_tile_is_one_tile():
    class Step:
        index = 0

    class Context:
        step, layer = Step, 0

    q = torch.ones(1, 1, 32, 4)
    k = torch.zeros(1, 1, 32, 4)
    k[:, :, :8] = 50.0
    watcher = AttentionWatcher(0.9, (8, 8), 4)
    state = {}
    for index in (0, 1):
        Step.index = index
        watcher.look(q, k, k, 1.0, Context, state)
    assert watcher.heads() == [{"layer": 0, "head": 0, "density": 0.25, "overlap": 1.0}]


def test_magcache_ratios_are_of_the_first_branch():
    """Each call of a step but the first is another guidance branch."""
    blocks = nn.ModuleDict({"blocks": nn.ModuleList([Grows(), Grows()])})
    adapter = FamilyAdapter("toy", ("Toy",), (BlockContract("blocks"),))
    seen = Trajectory()
    seen.begin()
    residuals = trajectory_stats.Residuals(seen)
    with residuals.watching(blocks, adapter):
        for step in range(4):
            for branch in range(2):
                hidden = torch.ones(1, 3, 2)
                for block in blocks.blocks:
                    hidden = block(hidden_states=hidden, by=2.0**step * (1 + 9 * branch))
            seen.add(torch.ones(1, 4), torch.ones(1, 4))
    assert residuals.ratios() == pytest.approx([2.0, 2.0, 2.0])
    assert not blocks.blocks[0]._forward_pre_hooks and not blocks.blocks[1]._forward_hooks


class Grows(nn.Module):
    def forward(self, hidden_states, by):
        return hidden_states + by


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_another_precision_gives_what_the_pipeline_had(dtype):
    from tiny import tiny_flux

    pipe, call = tiny_flux()
    pipe.transformer.to(dtype)
    call = call | {"output_type": "latent"}
    call = {k: v.to(dtype) if torch.is_tensor(v) else v for k, v in call.items()}

    def latents():
        return pipe(**call, generator=torch.Generator().manual_seed(0)).images

    dense = latents()
    with trajectory_stats.other_precision([pipe.transformer], dtype):
        other = latents()
    assert other.dtype == dense.dtype == dtype
    assert 0 < (other - dense).abs().max() < 0.1 * dense.abs().max()
    assert "forward" not in vars(pipe.transformer)


def test_a_random_model_is_called_random(model_folder, tmp_path, capsys):
    out = tmp_path / "found.json"
    command = ["bench", "trajectory", str(model_folder), "--limit", "2", "--out", str(out)]
    assert main([*command, "--q-tile", "16", "--k-tile", "16"]) == 0
    printed = capsys.readouterr().out
    assert trajectory.RANDOM in printed
    found = json.loads(out.read_text())
    assert found["random"]
    assert len(found["half_steps"]) == len(found["noise_floor"]["psnr"]) == 2
    assert len(found["magcache"]["ratios"]) == found["steps"] - 1
    assert found["attention"]


def test_too_few_steps_is_one_line(model_folder, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["bench", "trajectory", str(model_folder), "--steps", "4"])
    assert "--steps must be a whole number >= 6" in capsys.readouterr().err
    short = ["--call", "num_inference_steps=4"]
    with pytest.raises(SystemExit, match="2"):  # it has no such option: --steps says it
        main(["bench", "trajectory", str(model_folder), *short])
