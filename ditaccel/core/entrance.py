"""A place in front of a pipeline's calls, where their arguments may be changed.

Python looks for `__call__` on the class, so the pipeline gets a class of its own: derived from the
one that it had, with the same name, and nothing of it changes for other pipelines. Whatever the
call works out from its arguments (noise levels, where an image-to-image run begins, the progress
bar) follows from the changed ones. A deepcopy or pickle of the pipeline has its former class.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable
from typing import Any

from .patching import PatchLedger

Change = Callable[[tuple[Any, ...], dict[str, Any]], tuple[tuple[Any, ...], dict[str, Any]]]


def stand_before_calls(pipe: Any, change: Change, ledger: PatchLedger) -> None:
    """Change the arguments of a pipeline's calls until the ledger is undone.

    Args:
        pipe: the pipeline.
        change: gets the positional and the named arguments, and returns those to call with.
        ledger: takes note of it.
    """
    kind: Any = type(pipe)
    own: Any = type(kind)(kind.__name__, (kind,), _members(kind, change))
    object.__setattr__(pipe, "__class__", own)
    held = weakref.ref(pipe)

    def leave() -> None:
        there = held()
        if there is not None and type(there) is own:
            object.__setattr__(there, "__class__", kind)

    ledger.on_undo(leave)


def _members(kind: Any, change: Change) -> dict[str, Any]:
    called = kind.__call__

    # not `self`: whoever looks for the frame of the pipeline's call must not take this one for it
    @functools.wraps(called)
    def __call__(pipe: Any, *args: Any, **kwargs: Any) -> Any:
        args, kwargs = change(args, kwargs)
        return called(pipe, *args, **kwargs)

    def __reduce_ex__(pipe: Any, protocol: Any) -> Any:
        own = type(pipe)
        how, parts, *rest = super(own, pipe).__reduce_ex__(protocol)
        return (how, tuple(kind if part is own else part for part in parts), *rest)

    return {
        "__call__": __call__,
        "__reduce_ex__": __reduce_ex__,
        "__module__": kind.__module__,
        "__qualname__": kind.__qualname__,
        "__doc__": kind.__doc__,
    }
