"""Shapes of the files in a job's folder: what somebody may have changed is checked before use."""

from __future__ import annotations

import re
from pathlib import PurePosixPath
from typing import Any

from ..io.checked import (
    WrongShape,
    anything,
    choice,
    items,
    maybe,
    number,
    record,
    table,
    text,
    whole,
)


def _id(value: Any, at: str) -> str:
    """Ids become file names."""
    if not isinstance(value, str) or not re.fullmatch(r"[0-9a-f]{16}", value):
        raise WrongShape(f"{at} must be 16 hex digits")
    return value


def _inside(value: Any, at: str) -> str:
    """A path below the folder of outputs; empty in rows that cannot be made."""
    name: str = text(value, at)
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\0" in name:
        raise WrongShape(f"{at} must be a path below outputs/")
    return name


_FILE = record({"kind": text, "path": _inside, "bytes": whole(0)}, {"sha256": text})
_STEPS = record(
    {},
    {"calls": whole(0), "forecast": whole(0), "steps": table(text), "reasons": table(whole(0))},
)
_FACTS = {
    "row": whole(0),
    "name": _inside,
    "prompt": text,
    "negative_prompt": maybe(text),
    "class_label": maybe(whole(0)),
    "seed": whole(0),
    "call": table(anything),
    "inputs": table(text),
    "config": maybe(table(anything)),
    "fps": number(0, 1e6),
    "meta": table(anything),
}
ITEM = record({"id": _id, "row": whole(0)}, {**_FACTS, "error": text})
AUDIT = record(
    {"id": _id, "psnr": number(0, 99), "config": table(anything)}, {"seconds": number(0)}
)
DONE_RECORD = record(
    {
        "id": _id,
        "status": choice("done"),
        "files": items(_FILE, 1),
        "seconds": table(number(0)),
        "finished": number(0),
    },
    {
        **_FACTS,
        "steps": maybe(_STEPS),
        "audit": record({}, {"psnr": number(0, 99), "seconds": number(0), "error": text}),
        "safer": text,
    },
)
FAILED_RECORD = record(
    {"id": _id, "status": choice("failed"), "reason": text},
    {**_FACTS, "kind": text, "finished": number(0), "trace": text},
)
JOB = record(
    {},
    {
        "model": text,
        "settings": record({}, {"save": items(text), "scheduler": text}),
        "config": maybe(table(anything)),
        "versions": table(anything),
        "chosen": maybe(items(text)),
        "audit": maybe(record({"share": number(0, 1)}, {"target": maybe(number(0, 99))})),
    },
)
