"""Which sessions are on for a pipeline, and the report of the last one that was.

A session is found through the modules that it patched, so that every pipeline that shares them
sees it. A pipeline is also remembered, weakly, with the session it was given, so that the session
is still found after a component was exchanged; and a report outlives its session. Nothing here
keeps a pipeline or a module alive.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from contextlib import contextmanager, suppress
from typing import Any

from torch import nn

from ..reports.journal import Journal
from .session import Session, sessions_of

# pipeline -> the session that it was given
_GIVEN: MutableMapping[Any, weakref.ref[Session]] = weakref.WeakKeyDictionary()
# pipeline or transformer -> what its last session has written
_LAST: MutableMapping[Any, Journal] = weakref.WeakKeyDictionary()


def sessions_on(pipe: Any, parts: Iterable[nn.Module]) -> list[Session]:
    """The sessions of a pipeline's modules, and the one that it was given, where they are on.

    Args:
        pipe: the pipeline.
        parts: its components, as they are now.
    """
    found = sessions_of(parts)
    with suppress(TypeError):  # an object that cannot be a key was never remembered
        given = _GIVEN.get(pipe, lambda: None)()
        if given is not None and given.is_on and given not in found:
            found.append(given)
    return found


def remember(pipe: Any, session: Session) -> None:
    """Take note that a pipeline has been given a session."""
    for place in (pipe, *session.transformers.values()):
        with suppress(TypeError):
            _LAST[place] = session.journal
    with suppress(TypeError):
        _GIVEN[pipe] = weakref.ref(session)


def last_journal(pipe: Any, parts: Iterable[nn.Module]) -> Journal | None:
    """What the last session of a pipeline, or of one of its transformers, has written."""
    for place in (pipe, *parts):
        with suppress(TypeError):
            journal = _LAST.get(place)
            if journal is not None:
                return journal
    return None


@contextmanager
def suspended(sessions: Iterable[Session]) -> Iterator[None]:
    """Take sessions off for the length of a `with` block; their reports go on afterwards."""
    former = list(sessions)
    for session in former:
        session.restore()
    try:
        yield
    finally:
        for session in former:
            session.put_on()
