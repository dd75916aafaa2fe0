"""Training goes on from exported weights where the exact states are gone."""

import json

import pytest
import torch


@pytest.fixture
def revive(script, monkeypatch, tmp_path):
    module = script("revive")
    for name in ("loop", "revive"):
        monkeypatch.setattr(script(name), "RUNS", tmp_path)
    for name in ("pools", "revive"):
        monkeypatch.setattr(script(name), "FOLDER", tmp_path / "pools")
    return module


@pytest.mark.parametrize("name", ["dit", "wan"])
def test_a_revived_run_has_the_exported_weights_and_history(revive, script, name):
    loop = script("loop")
    revive.revive(name)
    folder = revive.MODELS / f"shapes-{name}"
    pipe = revive.CLASSES[name].from_pretrained(folder)
    run = loop.Run(name, revive.BUILD[name](), muon=True)
    told = json.loads((folder / "card" / "training.json").read_text())
    assert run.step == run.started == told["step"]
    assert run.seconds / 60 == pytest.approx(told["minutes"], rel=0.01)
    shipped = pipe.transformer.state_dict()
    for weights in (run.model["transformer"].state_dict(), run.ema):
        part = {k.removeprefix("transformer."): v for k, v in weights.items()}
        assert all(torch.equal(part[k], v) for k, v in shipped.items())
    # an exact state is worth more: it is left alone
    run.step += 5
    run.save()
    revive.revive(name)
    again = loop.Run(name, revive.BUILD[name](), muon=True)
    assert (again.step, again.started) == (told["step"] + 5, told["step"])


def test_revived_pools_are_normalised_as_the_exported_model_expects(revive, script):
    revive.revive("wan")
    mean, spread = script("pools").statistics("wan")
    vae = revive.CLASSES["wan"].from_pretrained(revive.MODELS / "shapes-wan").vae
    assert mean.tolist() == pytest.approx(vae.config.latents_mean)
    assert spread.tolist() == pytest.approx(vae.config.latents_std)
