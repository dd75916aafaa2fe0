"""Warnings that point at the user's own line, from however deep inside a pipeline they come."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

# What stands between a user's call and us; frames of rebound processors have no name at all.
_BETWEEN = frozenset({"", "ditaccel", "diffusers", "transformers", "torch", "accelerate"})


def _is_between(name: str) -> bool:
    root = name.partition(".")[0]
    return root in _BETWEEN or root in sys.stdlib_module_names


@contextmanager
def plain_warnings() -> Iterator[None]:
    """Warnings as one line each, without the place in our code that a command line cannot use."""

    def line(message: Warning | str, *_: Any, **__: Any) -> str:
        text = " ".join(str(message).split())
        return f"ditaccel: warning: {text.removeprefix('ditaccel: ')}\n"

    before = warnings.formatwarning
    warnings.formatwarning = line
    try:
        yield
    finally:
        warnings.formatwarning = before


def warn(line: str) -> None:
    """Show `ditaccel: line` as a UserWarning of the nearest frame that is the user's."""
    level, frame = 2, sys._getframe(1)
    while _is_between(frame.f_globals.get("__name__", "")):
        if frame.f_back is None:
            level = 2  # a thread of ours: the line that warns is all there is
            break
        level, frame = level + 1, frame.f_back
    warnings.warn(f"ditaccel: {line}", stacklevel=level)
