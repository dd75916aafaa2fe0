"""What the cards of the newer samples say of themselves is what their files say."""

import json
import re

import pytest

import ditaccel
from ditaccel.io.models import load_pipeline

from .conftest import SAMPLES

MODELS = SAMPLES / "models"


def card(name):
    """The card in one line, and its folder."""
    return " ".join((MODELS / name / "README.md").read_text().split()), MODELS / name


@pytest.mark.parametrize(
    ("name", "parts", "half"),
    [
        ("shapes-flux-few", ("transformer", "vae", "text_encoder", "text_encoder_2"), ()),
        ("shapes-wan22", ("transformer", "transformer_2"), ("-high", "-low")),
    ],
)
def test_size_and_training_are_those_of_the_files(name, parts, half):
    text, folder = card(name)
    weights = [w for part in parts for w in (folder / part).glob("*.safetensors")]
    megabytes = sum(w.stat().st_size for w in weights) / 1e6
    assert f"{megabytes:.1f} MB of safetensors" in text
    logs = [json.loads((folder / "card" / f"training{h}.json").read_text()) for h in half or ("",)]
    minutes = sum(log["minutes"] for log in logs)
    assert f"{minutes:.0f} minutes on" in text
    for log in logs:
        assert re.search(rf"\b{log['step']}\b", text)


def test_shapes_flux_few_calls_its_transformer_once_per_step():
    pipe = load_pipeline(MODELS / "shapes-flux-few")
    call = json.loads((MODELS / "shapes-flux-few" / "sample.json").read_text())["call"]
    with ditaccel.accelerated(pipe, "safe"):
        pipe("a red circle", output_type="latent", **call)
        assert ditaccel.report(pipe).total_calls == call["num_inference_steps"] == 8
