"""finetune: what it trains, what it leaves alone, going on after a kill, and what it refuses."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from tiny import generate, tiny_dit, tiny_wan, tiny_wan22

import ditaccel
from ditaccel import ConfigError, SLAConfig, UsageError, cli
from ditaccel.attention.sla.weights import SLAWeights
from ditaccel.finetuning.loss_curve import CURVE, LOSSES
from ditaccel.finetuning.rounds import Rounds
from ditaccel.finetuning.run import finetune
from ditaccel.finetuning.training import Training, TrainingStopped
from ditaccel.io.files import read_lines

CONFIG = SLAConfig(critical=0.2, mode="sla", q_tile=16, k_tile=16, min_tokens=0, dense_steps=0)


def _start(build=tiny_wan, **changes):
    pipe, call = build(layers=2)
    embeds = {k: call.pop(k) for k in list(call) if "embeds" in k}
    call |= {"height": 64, "width": 64, "num_inference_steps": 3, **changes}
    call["output_type"] = "latent"
    return pipe, [embeds, {k: 0.5 * v for k, v in embeds.items()}], call


def _tensors(path):
    return SLAWeights.load(path).tensors()


def _train(folder, steps=6, **options):
    pipe, data, call = _start()
    options = {"config": CONFIG, "lr": 1e-2, "save_every": 2, "quiet": True, **options}
    return finetune(pipe, data, out=folder, steps=steps, **options, **call)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A finished run, and the pipeline before and after it."""
    folder = tmp_path_factory.mktemp("run")
    pipe, data, call = _start()
    weights = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    wants = {k: p.requires_grad for k, p in pipe.transformer.named_parameters()}
    before = generate(pipe, {**data[0], **call})
    options = {"steps": 30, "lr": 3e-2, "save_every": 10, "quiet": True}
    made = finetune(pipe, data, CONFIG, out=folder, **options, **call)
    return pipe, data, call, folder, made, weights, wants, before


def test_the_error_falls_and_every_layer_learns(trained):
    made = trained[4]
    assert made.error_after < 0.9 * made.error_before
    tensors = _tensors(made.adapter)
    for layer in range(2):
        assert float(tensors[f"transformer/projection.{layer}.weight"].abs().max()) > 1e-3
    assert made.size == made.adapter.stat().st_size < 10_000
    lines = read_lines(trained[3] / LOSSES)
    assert [x["step"] for x in lines] == list(range(1, 31))
    assert (trained[3] / CURVE).read_bytes()[:4] == b"\x89PNG"


def test_the_pipeline_is_left_as_it_was(trained):
    pipe, data, call, _, _, weights, wants, before = trained
    for name, value in pipe.transformer.state_dict().items():
        assert torch.equal(value, weights[name]), name
    assert {k: p.requires_grad for k, p in pipe.transformer.named_parameters()} == wants
    assert torch.equal(generate(pipe, {**data[0], **call}), before)


def test_the_adapter_brings_generations_nearer_to_dense(trained):
    pipe, data, call, _, made, _, _, before = trained
    errors = []
    options = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    plain = {"critical": 0.2, "mode": "sparse", "q_tile": 16, "k_tile": 16}
    for config in (SLAConfig(weights=str(made.adapter), **options), SLAConfig(**plain, **options)):
        with ditaccel.accelerated(pipe, attention=config):
            errors.append(float((generate(pipe, {**data[0], **call}) - before).norm()))
    assert errors[0] < errors[1]


def test_the_adapter_holds_the_average_of_the_weights(tmp_path):
    """After one update from 0 the average is 1 - 1/10 of it, whatever its decay is later on."""
    last, average = (
        _tensors(_train(tmp_path / str(decay), steps=1, average=decay).adapter)
        for decay in (0.0, 0.5)
    )
    assert any(float(t.abs().max()) > 0 for t in last.values())
    for name, tensor in last.items():
        torch.testing.assert_close(average[name], 0.9 * tensor)


def test_a_killed_run_goes_on_exactly(tmp_path, monkeypatch):
    _train(tmp_path / "whole", train="attention", weights_lr=1e-3)
    update = Training._update

    def killed(self):
        if self._step == 5:
            raise KeyboardInterrupt
        return update(self)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "_update", killed)
        _train(tmp_path / "parts", train="attention", weights_lr=1e-3)
    assert len(read_lines(tmp_path / "parts" / LOSSES)) == 5  # one behind the checkpoint
    _train(tmp_path / "parts", train="attention", weights_lr=1e-3)
    whole, parts = (_tensors(tmp_path / n / "adapter.safetensors") for n in ("whole", "parts"))
    assert whole.keys() == parts.keys() and any("change" in name for name in whole)
    for name, value in whole.items():
        assert torch.equal(value, parts[name]), name
    losses = [
        [(x["step"], x["loss"]) for x in read_lines(tmp_path / n / LOSSES)]
        for n in ("whole", "parts")
    ]
    assert losses[0] == losses[1]


def test_a_loss_that_is_not_finite_stops_and_keeps_the_last_good_checkpoint(tmp_path, monkeypatch):
    lessons = Rounds.lessons

    def broken(self, step):
        found = lessons(self, step)
        if step == 3:
            found[0].target.fill_(torch.nan)
        return found

    monkeypatch.setattr(Rounds, "lessons", broken)
    with pytest.raises(
        TrainingStopped, match=r"loss is nan at step 4: .* are those of step 2, the"
    ):
        _train(tmp_path)
    adapter = SLAWeights.load(tmp_path / "adapter.safetensors")
    assert adapter.notes["steps"] == 2
    assert all(bool(torch.isfinite(t).all()) for t in adapter.tensors().values())


def test_clean_latents_serve_as_data(tmp_path):
    pipe, data, call = _start()
    shape = (1, pipe.transformer.config.in_channels, 1, 8, 8)
    seen = []
    pipe.transformer.register_forward_hook(
        lambda module, args, kwargs, out: seen.append(kwargs["hidden_states"].shape),
        with_kwargs=True,
    )
    generate(pipe, {**data[0], **call})
    latents = torch.randn(seen[0], generator=torch.Generator().manual_seed(0))
    items = [{**data[0], "latents": latents}]
    made = finetune(pipe, items, CONFIG, out=tmp_path, steps=2, quiet=True, **call)
    assert made.steps == 2
    wrong = [{**data[0], "latents": latents[:, :, :, :-2]}]
    with pytest.raises(ConfigError, match=r"item 0 of data: latents of the data are .* but transf"):
        finetune(pipe, wrong, CONFIG, out=tmp_path / "b", steps=2, quiet=True, **call)
    assert torch.Size(shape[:2]) == seen[0][:2]
    assert not (tmp_path / "b" / "adapter.safetensors").exists()


def test_both_transformers_of_wan22_learn(tmp_path):
    pipe, data, call = _start(tiny_wan22, num_inference_steps=6)
    made = finetune(pipe, data, CONFIG, out=tmp_path, steps=8, lr=1e-2, quiet=True, **call)
    tensors = _tensors(made.adapter)
    for name in ("transformer", "transformer_2"):
        assert float(tensors[f"{name}/projection.0.weight"].abs().max()) > 0
    with ditaccel.accelerated(
        pipe, attention=SLAConfig(weights=str(made.adapter), min_tokens=0, break_even=1.0)
    ):
        assert torch.isfinite(generate(pipe, {**data[0], **call})).all()


def test_all_weights_can_learn_and_come_back(tmp_path):
    pipe, data, call = _start()
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    finetune(
        pipe, data, CONFIG, out=tmp_path, steps=2, train="all", weights_lr=1e-3, quiet=True, **call
    )
    changes = SLAWeights.load(tmp_path / "adapter.safetensors").changes["transformer"]
    assert changes.keys() == dict(pipe.transformer.named_parameters()).keys()
    assert float(changes["blocks.1.ffn.net.2.weight"].abs().max()) > 0
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())


def test_weights_alone_learn_without_a_linear_branch(tmp_path):
    """Mode training_free: nothing is added to attention, so it costs what it cost before."""
    pipe, data, call = _start()
    config = replace(CONFIG, mode="training_free", negligible=0.0)
    before = generate(pipe, {**data[0], **call})
    options = {"steps": 12, "weights_lr": 3e-3, "average": 0.5, "quiet": True}
    made = finetune(pipe, data, config, out=tmp_path / "run", **options, **call)
    assert made.error_after < 0.9 * made.error_before
    assert all("/change." in name for name in _tensors(made.adapter))
    options = {"min_tokens": 0, "dense_steps": 0, "break_even": 1.0}
    fitted = SLAConfig(weights=str(made.adapter), **options)
    with ditaccel.accelerated(pipe, attention=fitted):
        errors = [float((generate(pipe, {**data[0], **call}) - before).norm())]
        assert {r["reason"] for r in ditaccel.report(pipe).attention[0].rows()} == {"training-free"}
    with ditaccel.accelerated(pipe, attention=config):
        errors.append(float((generate(pipe, {**data[0], **call}) - before).norm()))
    assert errors[0] < errors[1]
    with pytest.raises(ConfigError, match="rest='means', but weights of the mode 'training_free'"):
        replace(fitted, rest="means").planner()
    with pytest.raises(ConfigError, match="train is 'projection'"):
        finetune(pipe, data, config, out=tmp_path / "b", train="projection", **call)


def test_what_is_refused_says_why(tmp_path):
    pipe, data, call = _start()

    def start(data=data, config=CONFIG, folder=tmp_path / "a", **options):
        return finetune(pipe, data, config, out=folder, quiet=True, **{**call, **options})

    for wanted, options in (
        ("steps is 0", {"steps": 0}),
        ("lr is 0", {"lr": 0}),
        ("train is 'lora'", {"train": "lora"}),
        ("mode='sparse' has nothing to train", {"config": SLAConfig(mode="sparse")}),
        ("no step of a generation is left", {"config": replace(CONFIG, dense_steps=3)}),
    ):
        with pytest.raises(ConfigError, match=wanted):
            start(**options)
    for wanted, items in (("data is empty", []), ("item 1 of data is of type int", ["a", 3])):
        with pytest.raises(UsageError, match=wanted):
            start(data=items)
    with pytest.raises(UsageError, match="finetune needs the pipeline"):
        finetune(pipe.transformer, data, CONFIG, out=tmp_path / "a", quiet=True, **call)
    _train(tmp_path / "run", steps=1)
    with pytest.raises(
        UsageError, match=r"other settings \(steps is 2, there 1\); choose another folder"
    ):
        _train(tmp_path / "run", steps=2)
    with ditaccel.accelerated(pipe, "sla:min_tokens=0"), pytest.raises(UsageError, match="dense"):
        start()
    pipe.transformer.compile_repeated_blocks(backend="eager")
    with pytest.raises(ditaccel.UnsupportedError, match="fine-tune before compiling"):
        start(folder=tmp_path / "c")


def test_the_command_line_says_what_is_wrong(tmp_path, capsys):
    model = tmp_path / "model"
    model.mkdir()
    (model / "sample.json").write_text(json.dumps({"prompts": "p.txt"}))
    (model / "p.txt").write_text("a\nb\n")
    command = ["finetune", str(model), "--out", str(tmp_path / "out")]
    assert cli.main([*command, "--config", "svg2"]) == 2
    assert (
        "svg2 has nothing to train; give a config of one of: attention_tile, clear"
        in capsys.readouterr().err
    )
    assert cli.main([*command, "--skip", "5"]) == 2
    assert "--skip 5 leaves none of 2 prompts" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


_RANK = """
import os, sys
sys.path.insert(0, sys.argv[2])
import torch
torch.set_num_threads(1)
from tiny import tiny_wan
from ditaccel import SLAConfig, finetune
pipe, call = tiny_wan(layers=1)
data = [{k: call.pop(k) for k in list(call) if "embeds" in k}]
call |= {"height": 64, "width": 64, "num_inference_steps": 3, "output_type": "latent"}
config = SLAConfig(
    critical=0.2, mode="sla", q_tile=16, k_tile=16, min_tokens=0, dense_steps=0
)
made = finetune(pipe, data, config, out=sys.argv[1], steps=3, lr=1e-2, quiet=True, **call)
print("rank", os.environ["RANK"], made.error_before, made.error_after, flush=True)
"""


@pytest.mark.slow
def test_two_processes_learn_the_same_weights(tmp_path):
    script = tmp_path / "rank.py"
    script.write_text(_RANK)
    support = Path(__file__).resolve().parents[1] / "support"
    launcher = [sys.executable, "-P", "-m", "torch.distributed.run", "--standalone"]
    done = subprocess.run(
        [*launcher, "--nproc_per_node", "2", str(script), str(tmp_path / "run"), str(support)],
        env={**os.environ, "CUDA_VISIBLE_DEVICES": ""},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    told = sorted(line.split() for line in done.stdout.splitlines() if line.startswith("rank"))
    assert [line[1] for line in told] == ["0", "1"]
    assert told[0][2:] == told[1][2:] and float(told[0][3]) < float(told[0][2])
    assert len(read_lines(tmp_path / "run" / LOSSES)) == 3


def test_nothing_sparse_is_said_before_anything_is_written(tmp_path):
    pipe, data, call = _start()
    options = {"out": tmp_path / "run", "steps": 2, "quiet": True}
    with pytest.raises(ConfigError, match=r"no attention call is sparse: .* \d+ tokens .*min_tok"):
        finetune(pipe, data, SLAConfig(), **options, **call)
    seen = []
    pipe.transformer.register_forward_hook(lambda *_: seen.append(1))
    with pytest.raises(ConfigError, match="larger pictures or clips"):
        finetune(pipe, data, SLAConfig(mode="sla"), **options, **call)
    assert len(seen) <= 3  # one step of one generation, and the student's look at it
    assert not (tmp_path / "run").exists()


def test_arguments_that_the_pipeline_does_not_take_are_named(tmp_path):
    pipe, _ = tiny_dit()
    options = {"out": tmp_path / "run", "quiet": True}
    with pytest.raises(UsageError, match="DiTPipeline takes no argument 'negative_prompt'"):
        finetune(pipe, [{"class_labels": [1]}], CONFIG, negative_prompt="", **options)
    with pytest.raises(ConfigError, match="num_inference_steps is 0; it must be a whole number"):
        finetune(pipe, [{"class_labels": [1]}], CONFIG, num_inference_steps=0, **options)
    assert not (tmp_path / "run").exists()


def test_a_run_that_made_it_worse_says_so(tmp_path):
    with pytest.warns(UserWarning, match="training made the outputs no better"):
        made = _train(tmp_path, steps=3, lr=100.0)
    assert not made.better and made.error_after >= made.error_before
    assert "leave" in made.verdict and str(made.adapter) in made.verdict


def test_resuming_with_other_settings_says_which_differ(tmp_path):
    _train(tmp_path, steps=1)
    other = {"steps": 3, "lr": 0.5}
    with pytest.raises(UsageError) as told:
        _train(tmp_path, **other)
    for words in ("steps is 3, there 1", "lr is 0.5, there 0.01", "choose another folder"):
        assert words in str(told.value)
    assert "average" not in str(told.value)
    pipe, data, call = _start(num_inference_steps=4)
    with pytest.raises(UsageError, match=r"num_inference_steps is '4', there '3'"):
        finetune(
            pipe, data, CONFIG, out=tmp_path, steps=1, lr=1e-2, save_every=2, quiet=True, **call
        )
