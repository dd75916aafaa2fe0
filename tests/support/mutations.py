"""Changes that somebody, or a broken disk, makes to a JSON file."""

from __future__ import annotations

import json
import random
from typing import Any

VALUES: list[Any] = [
    *(
        None,
        True,
        -1,
        0,
        1e300,
        10**400,
        "",
        "\ud83d",
        "../../x",
        "/etc/passwd",
        "<script>",
        "a\0b",
    ),
    *([], {}, [[]], {"a": {"b": []}}, [None], "x" * 5000, float("nan")),
]


def _places(value: Any) -> list[tuple[Any, Any]]:
    found: list[tuple[Any, Any]] = []
    keys = (
        value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    )
    for key in keys:
        found.append((value, key))
        found += _places(value[key])
    return found


def mutate(data: bytes, draw: random.Random) -> bytes:
    """One change: a value, a key less, a key more, a cut, noise, or deep nesting."""
    lines = data.split(b"\n") if data.count(b"\n{") else [data]
    at = draw.randrange(len(lines))
    try:
        value = json.loads(lines[at])
        places = _places(value)
    except ValueError:
        places = []
    kind = draw.randrange(8)
    if not places or kind == 0:
        return data[: draw.randrange(len(data) + 1)]
    if kind == 1:
        return data + draw.randbytes(8)
    holder, key = places[draw.randrange(len(places))]
    if kind == 2:
        del holder[key]
    elif kind == 3 and isinstance(holder, dict):
        holder["unknown"] = draw.choice(VALUES)
    else:
        holder[key] = draw.choice(VALUES)
    lines[at] = json.dumps(value).encode()
    if kind == 4:
        lines[at] = lines[at].replace(b"null", b"[" * 3000)
    return b"\n".join(lines)
