"""Who calls the transformer? The frames on the stack of a call say it, and nothing is patched.

The nearest frame outwards that belongs to a pipeline which holds this very transformer, or that has
a scheduler among its locals, owns the call. A loop written by hand with neither is known by the
frame that it runs in. A frame is remembered by a mark that lives exactly as long as it does, put
into `frame.f_trace`: that attribute does nothing unless a debugger traces, and then it is left
alone. So a run that broke off is told from the next one by the very same code.
"""

from __future__ import annotations

import dis
import sys
import threading
import types
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from .schedule import Schedule
from .schedulers import in_use, is_scheduler

# Frames between a transformer call and the code that makes it.
_MACHINERY = (
    "torch.",
    "accelerate.",
    "contextlib",
    "functools",
    "ditaccel.core.patching",
    "ditaccel.sessions.",
    "ditaccel.core.denoising.callers",
    "ditaccel.core.denoising.loops",
)
_DEPTH = 64
_COMPREHENSIONS = ("<listcomp>", "<setcomp>", "<dictcomp>", "<genexpr>", "<lambda>")
_SUSPENDS = 0x20 | 0x80 | 0x200  # generators and coroutines


class Mark:
    """Lives as long as the frame that it was put into."""

    __slots__ = ("__weakref__", "suspends")

    def __init__(self, suspends: bool) -> None:
        self.suspends = suspends

    def __call__(self, frame: Any, event: str, arg: Any) -> Mark:
        """What a tracer calls that was switched on in the meantime."""
        return self


# Frames that a debugger traces cannot hold a mark; a few are remembered by their address.
_TRACED: dict[tuple[int, int], Mark] = {}


def mark_of(frame: types.FrameType) -> Mark:
    """The mark of a frame, put there if it has none."""
    there: Any = frame.f_trace
    if isinstance(there, Mark):
        return there
    made = Mark(bool(frame.f_code.co_flags & _SUSPENDS))
    if there is None:
        frame.f_trace = made
        return made
    if len(_TRACED) > 64:
        _TRACED.clear()
    return _TRACED.setdefault((id(frame), id(frame.f_code)), made)


def _locals(frame: types.FrameType) -> dict[str, Any]:
    """The locals of a frame; before Python 3.13 nothing of them is kept alive by looking."""
    there = frame.f_locals
    found = dict(there)
    optimized = frame.f_code.co_flags & 0x1
    if optimized and sys.version_info < (3, 13) and sys.gettrace() is None:
        there.clear()
    return found


def _frames() -> Iterator[types.FrameType]:
    """The frames outwards from the code that calls the transformer."""
    frame: types.FrameType | None = sys._getframe(1)
    for _ in range(_DEPTH):
        if frame is None:
            return
        name = frame.f_globals.get("__name__") or ""
        if not name.startswith(_MACHINERY):
            yield frame
        frame = frame.f_back


def _holds(owner: Any, transformer: nn.Module) -> bool:
    """Whether an object is a pipeline (or the like) of this transformer, with a scheduler."""
    own = getattr(owner, "__dict__", None)
    if not isinstance(own, dict) or not hasattr(own.get("scheduler"), "timesteps"):
        return False
    for values in (own, own.get("_modules")):
        for value in (values or {}).values():
            if value is transformer:
                return True
            inner = getattr(value, "__dict__", {}).get("_modules")
            if isinstance(inner, dict) and inner.get("_orig_mod") is transformer:
                return True
    return False


def _owner(frame: types.FrameType, transformer: nn.Module) -> tuple[Any, bool] | None:
    """The pipeline whose code a frame runs, and whether it is its method."""
    code = frame.f_code
    method = bool(code.co_argcount) and code.co_varnames[0] == "self"
    modular = "components" in code.co_varnames[: code.co_argcount]
    if not method and not modular:
        return None
    found = _locals(frame)
    if method and _holds(found.get("self"), transformer):
        return found["self"], True
    if modular and _holds(found.get("components"), transformer):
        return found["components"], False
    return None


def _schedulers(frame: types.FrameType, transformer: nn.Module) -> list[Any]:
    """Schedulers in use among the locals of a frame, or in pipelines among them."""
    found: list[Any] = []
    for name, value in _locals(frame).items():
        nearby = [value]
        if name == "self" and isinstance(getattr(value, "__dict__", None), dict):
            nearby += value.__dict__.values()
        for each in nearby:
            if is_scheduler(each):
                found.append(each)
            elif _holds(each, transformer):
                found.append(each.__dict__["scheduler"])
    return list({id(s): s for s in found if in_use(s)}.values())


_LOOPS: weakref.WeakKeyDictionary[types.CodeType, list[tuple[int, int]]] = (
    weakref.WeakKeyDictionary()
)


def _in_a_loop(frame: types.FrameType) -> bool:
    """Whether a frame executes the body of a `for` or `while`."""
    code = frame.f_code
    if code.co_name in _COMPREHENSIONS:
        return False
    spans = _LOOPS.get(code)
    if spans is None:
        spans = _LOOPS[code] = [
            (int(i.argval), i.offset)
            for i in dis.get_instructions(code)
            if "JUMP_BACKWARD" in i.opname and isinstance(i.argval, int)
        ]
    return any(start <= frame.f_lasti <= end for start, end in spans)


@dataclass(eq=False)
class Caller:
    """Who calls.

    Attributes:
        thread: identity of the thread.
        mark: of the frame that runs the loop: the pipeline's call, or the innermost `for` or
            `while`.
        pipeline: the pipeline whose code calls, None for a loop by hand. Of a loop by hand:
        schedulers: those in use that are in sight, the nearest frame's.
        chain: marks of all frames, the innermost first.
    """

    thread: int
    mark: Mark
    pipeline: Any = None
    schedulers: tuple[Any, ...] = ()
    chain: tuple[Mark, ...] = ()

    def step_options(self) -> dict[str, float]:
        """What a pipeline gives `scheduler.step` besides outputs and noise: `eta` of DDIM.

        It is an argument of the call, and nothing of the scheduler tells it.
        """
        for frame in _frames() if self.pipeline is not None else ():
            eta = _locals(frame).get("eta")
            if isinstance(eta, (int, float)) and eta:
                return {"eta": float(eta)}
            if frame.f_trace is self.mark:
                break
        return {}

    @property
    def scheduler(self) -> Any:
        """The scheduler that decides, None if none is in sight."""
        if self.pipeline is not None:
            return self.pipeline.__dict__.get("scheduler")
        return self.schedulers[0] if self.schedulers else None

    def choose(self, timestep: float) -> None:
        """Of several schedulers in sight, put the one first whose timesteps are the caller's."""
        if len(self.schedulers) < 2:
            return
        fits = [s for s in self.schedulers if Schedule.of(s, timestep).total is not None]
        self.schedulers = tuple(fits[:1] or self.schedulers[:1])


class Callers:
    """Finds callers, and remembers what the frames have shown: most calls come from one frame."""

    def __init__(self) -> None:
        self._pipelines: weakref.WeakKeyDictionary[Mark, tuple[Any, Any]] = (
            weakref.WeakKeyDictionary()
        )
        self._plain: weakref.WeakSet[Mark] = weakref.WeakSet()
        self._not_owned: weakref.WeakSet[Mark] = weakref.WeakSet()

    def find(self, transformer: nn.Module) -> Caller:
        """Say who calls a transformer (an inner one of what `torch.compile` made, too)."""
        thread = threading.get_ident()
        frames: list[types.FrameType] = []
        schedulers: list[Any] = []
        walk = _frames()
        for frame in walk:
            there: Any = frame.f_trace
            known = self._pipelines.get(there) if isinstance(there, Mark) else None
            if known is not None and not schedulers:
                pipeline, mark = known[0](), known[1]()
                if pipeline is not None and mark is not None:
                    return Caller(thread, mark, pipeline)
            seen = isinstance(there, Mark) and bool(frames)
            if not (seen and there in self._not_owned):
                owned = _owner(frame, transformer)
                own = None if owned is None else owned[0].__dict__["scheduler"]
                # (a loop by hand may run in a pipeline's callback, with a scheduler of its own)
                if owned is not None and (not schedulers or any(s is own for s in schedulers)):
                    pipeline = owned[0]
                    run = mark_of(_run_of(pipeline, [frame, *walk], transformer))
                    self._pipelines[mark_of(frame)] = weakref.ref(pipeline), weakref.ref(run)
                    return Caller(thread, run, pipeline)
                if owned is None:
                    self._not_owned.add(mark_of(frame))
            if not schedulers and not (seen and there in self._plain):
                schedulers = _schedulers(frame, transformer)
                if not schedulers:
                    self._plain.add(mark_of(frame))
            frames.append(frame)
        looping = next((f for f in frames if _in_a_loop(f)), frames[-1])
        chain = tuple(mark_of(f) for f in frames[:24])
        return Caller(thread, mark_of(looping), schedulers=tuple(schedulers), chain=chain)


def loop_variable(mark: Mark) -> Any:
    """The tensor `t` that a loop over timesteps is at, in the frame of a mark or one inside it.

    An iterator holds the first one of them until the loop is over, which is how its end is seen.
    """
    for frame in _frames():
        found = _locals(frame).get("t")
        if isinstance(found, torch.Tensor) and not found.ndim:
            return found
        if frame.f_trace is mark:
            break
    return None


def _run_of(
    pipeline: Any, frames: list[types.FrameType], transformer: nn.Module
) -> types.FrameType:
    """The frame of a pipeline's call: its `__call__`, else the outermost that is its own."""
    run = frames[0]
    for frame in frames:
        owned = _owner(frame, transformer)
        if owned is None or owned[0] is not pipeline:
            continue
        run = frame
        if owned[1] and frame.f_code.co_name == "__call__":
            break
    return run


def on_stack(mark: Mark) -> bool:
    """Whether the frame of a mark is one that this thread is in."""
    frame: types.FrameType | None = sys._getframe(1)
    while frame is not None:
        if frame.f_trace is mark:
            return True
        frame = frame.f_back
    return any(mark is traced for traced in _TRACED.values())
