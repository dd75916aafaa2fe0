"""Plans of job rows for a model that need not be there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ditaccel.batch.facts import Facts
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
