"""Looks into the folder of a batch job, and plans rows for a model that need not be there."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from ditaccel.batch.facts import Facts
from ditaccel.batch.folder import JobFolder
from ditaccel.batch.jobs import RawRow
from ditaccel.batch.manifest import Item, Planner, Settings
from ditaccel.io.models import Sheet

FACTS = Facts(
    model="m",
    pipeline="WanPipeline",
    family="wan",
    transformer="WanTransformer3DModel",
    arguments=dict.fromkeys(
        (
            *("prompt", "negative_prompt", "height", "width", "num_frames", "guidance_scale"),
            *("num_inference_steps", "image", "max_sequence_length"),
        ),
        True,
    ),
    sheet=Sheet(call={"height": 64, "width": 64, "num_inference_steps": 50}, negative_prompt=""),
    fingerprint="f",
)


def plan(
    tmp_path: Path, *rows: dict[str, Any], facts: Facts = FACTS, **settings: Any
) -> list[Item]:
    planner = Planner(facts, Settings(**settings), tmp_path)
    return planner.plan([RawRow(i, row) for i, row in enumerate(rows, 1)])[0]


def outputs(out: Path) -> dict[str, bytes]:
    """Contents of all output files but sidecars."""
    folder = out / "outputs"
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.suffix != ".json"
    }


def sidecars(out: Path) -> dict[str, dict[str, Any]]:
    return {p.stem: json.loads(p.read_text()) for p in (out / "outputs").glob("*.json")}


def assert_tidy(out: Path, finished: bool = True) -> None:
    """No draft, claim or worker is left, and every sidecar's files are whole."""
    for folder in ("claims", "workers"):
        assert os.listdir(out / folder) == []
    assert not [p for p in out.rglob("*") if p.name.startswith(".") or "draft" in p.name]
    job = JobFolder(out)
    named = {file["path"] for record in sidecars(out).values() for file in record["files"]}
    assert named == set(outputs(out))
    for item in job.items():
        wanted = finished or item.name in sidecars(out)
        if wanted and not item.error and job.failure(item) is None:
            assert job.record(item, verify=True) is not None
