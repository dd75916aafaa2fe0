"""How a pipeline is asked for something: by prompt or by class, and with what else."""

from __future__ import annotations

import inspect
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..core.kinds import arguments, takes_any, unlogged
from ..errors import DitaccelError, UsageError
from ..warning import warn
from . import given as given_texts
from .models import Sheet, class_label, is_class_pipeline, line_of


def parameters(pipe: Any) -> list[str] | None:
    """Names that a pipeline's call takes; None where it takes any."""
    return None if takes_any(pipe) else list(arguments(pipe))


def accepts(pipe: Any, name: str) -> bool:
    """Whether a pipeline's call takes an argument."""
    names = parameters(pipe)
    return names is None or name in names


def check_taken(names: Iterable[str], taken: Iterable[str], pipeline: str) -> None:
    """Look whether a pipeline takes the arguments that a user gave for its call.

    Args:
        names: that were given.
        taken: parameters of the pipeline call.
        pipeline: name of its class.

    Raises:
        UsageError: it takes no such argument.
    """
    known = list(taken)
    for name in names:
        if name not in known:
            hint = given_texts.suggest(name, known)
            raise UsageError(f"{name}: {pipeline} takes no such argument{hint}", "call")


def check_call(pipe: Any, call: Mapping[str, Any], verb: str) -> None:
    """Look at the arguments of a call before a pipeline does, which says less.

    Args:
        pipe: the pipeline.
        call: all that it will be called with, as far as the user gave it.
        verb: who asks, for the message.

    Raises:
        UsageError: the pipeline takes no such argument.
        ConfigError: a common argument is out of range.
    """
    names = parameters(pipe)
    for name, value in call.items():
        if names is not None and name not in names:
            hint = given_texts.suggest(name, names)
            raise UsageError(f"{verb}: {type(pipe).__name__} takes no argument {name!r}{hint}")
        if name in given_texts.RANGES:
            given_texts.call_argument(name, value, f"{verb}:")


def default_call(
    pipe: Any, sheet: Sheet, given: Mapping[str, Any] | None = None, own: Mapping[str, Any] = {}
) -> dict[str, Any]:
    """Arguments of every call, but for what is asked: the model's own and the user's.

    What the model's `sample.json` names and the pipeline does not take is left out with a warning
    (a factory may have made a pipeline of another class of it); a negative prompt is left out
    without one, since no result depends on it there.

    Args:
        pipe: the pipeline.
        sheet: of its model folder.
        given: by the user, on the command line.
        own: what the pipeline's factory gave for every call.

    Raises:
        UsageError: the pipeline does not take what the user gave.
    """
    names, given = parameters(pipe), dict(given or {})
    if names is not None:
        check_taken(given, names, type(pipe).__name__)
    call = {}
    for name, value in sheet.call.items():
        if names is None or name in names:
            call[name] = value
        elif name not in own:
            warn(f"{name} of the model's sample.json: {type(pipe).__name__} takes no such argument")
    if sheet.negative_prompt is not None and accepts(pipe, "negative_prompt"):
        call["negative_prompt"] = sheet.negative_prompt
    return {**call, **own, **given}


def asked(pipe: Any, prompt: str) -> dict[str, Any]:
    """What asks a pipeline for one thing.

    Args:
        pipe: the pipeline.
        prompt: text, or the name or number of a class.

    Raises:
        UsageError: there is no such class, or the pipeline is asked in neither way.
    """
    if is_class_pipeline(pipe):
        return {"class_labels": [class_label(pipe, prompt)]}
    if not accepts(pipe, "prompt"):
        raise UsageError(
            f"{type(pipe).__name__} takes neither `prompt` nor `class_labels`; call it from Python"
        )
    return {"prompt": prompt}


@contextmanager
def calls_of(pipe: Any, verb: str) -> Iterator[None]:
    """For a command: what a pipeline raises on the arguments it was given, in one line.

    An error that our own code raised in between is let through, with its traceback.

    Raises:
        UsageError: the pipeline, or what it calls, raised something.
    """
    try:
        with unlogged():
            yield
    except DitaccelError:
        raise
    except Exception as error:
        if not _raised_inside(pipe, error):
            raise
        kind = f"{type(error).__name__}: {line_of(error)}"
        raise UsageError(
            f"{verb}: the call of {type(pipe).__name__} fails ({kind}); check sizes and other "
            "arguments of the call, and that the pipeline runs without ditaccel"
        ) from error


def _raised_inside(pipe: Any, error: BaseException) -> bool:
    """Whether an error comes from a pipeline's call, and not from our code below it."""
    called = inspect.unwrap(type(pipe).__call__).__code__
    inside = ours = False
    for frame, _ in traceback.walk_tb(error.__traceback__):
        root = frame.f_globals.get("__name__", "").partition(".")[0]
        if frame.f_code is called:
            inside, ours = True, False
        elif root == "ditaccel":
            ours = True
        elif root in ("diffusers", "transformers"):
            ours = False
    return inside and not ours
