"""Two descriptions of a run held against each other, as a person wants to read it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .given import shown

_MOST = 4


def differences(own: Mapping[str, Any], there: Mapping[str, Any]) -> list[str]:
    """What differs, such as `steps is 600, there 500`; nested entries by their own names.

    Args:
        own: what is asked for now.
        there: what stands written; entries it alone has are not compared.
    """
    found = []
    for key, value in own.items():
        known = there.get(key)
        if isinstance(value, Mapping) and isinstance(known, Mapping):
            missing = {k: None for k in known if k not in value}
            found += differences({**value, **missing}, known)
        elif value != known:
            found.append(f"{key} is {_short(value)}, there {_short(known)}")
    return found


def told(found: list[str]) -> str:
    """Differences in one line, the first few of them."""
    more = f" and {len(found) - _MOST} more" if len(found) > _MOST else ""
    return "; ".join(found[:_MOST]) + more


def _short(value: Any) -> str:
    return "not set" if value is None else shown(value, 60)
