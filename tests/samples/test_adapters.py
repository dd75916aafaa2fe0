"""The adapters that ship: each fits its model, is small, and brings outputs nearer to dense."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch

import ditaccel
from ditaccel.config import parse_spec

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = sorted(p.parent for p in (ROOT / "samples" / "adapters").glob("*/adapter.safetensors"))


def _sheet(folder):
    """Model, spec and training call, from the code block and the command of its README."""
    text = (folder / "README.md").read_text(encoding="utf-8")
    model = re.search(r'from_pretrained\("(samples/models/[\w-]+)"\)', text).group(1)
    spec = re.search(r"^spec = \"(.*)\"$", text, re.MULTILINE)
    weights = f"samples/adapters/{folder.name}/adapter.safetensors"
    return model, f"{spec.group(1)}weights={weights}" if spec else f"sla:weights={weights}"


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_an_adapter_is_small_and_fits_its_model(folder, monkeypatch):
    diffusers = pytest.importorskip("diffusers")
    monkeypatch.chdir(ROOT)
    assert (folder / "adapter.safetensors").stat().st_size <= 2_000_000
    model, spec = _sheet(folder)
    pipe = diffusers.DiffusionPipeline.from_pretrained(model)
    before = {k: v.clone() for k, v in pipe.transformer.state_dict().items()}
    config = parse_spec(spec).attention
    with ditaccel.accelerated(pipe, attention=config):
        pass
    assert all(torch.equal(v, before[k]) for k, v in pipe.transformer.state_dict().items())
    notes = config.planner().weights.notes
    assert notes["error_after"] < notes["error_before"]
