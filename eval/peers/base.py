"""What a peer is: another project's cache, run as a row of the same comparison.

Each generation of a peer gets a fresh `isolated` copy of the pipeline: no state can outlive it,
and nothing that a peer patches at class level can reach another row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ditaccel.errors import ConfigError, DitaccelError, UnsupportedError

from ..registry import Registry
from ..specs import parse_value
from .isolation import isolated


@dataclass(frozen=True)
class Situation:
    """What a peer may know of the run.

    Attributes:
        steps: scheduler steps of its generations.
        branches: transformer calls per step of the dense run (2 with sequential guidance).
        generate: makes one calibration generation on a pipeline (another seed than the samples').
    """

    steps: int
    branches: int
    generate: Callable[[Any], None]


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One cache of another project.

    Attributes:
        name: what `--config peer/NAME` calls it.
        note: what a reader of its figures must know.
        options: names and defaults of its options: numbers or texts.
        apply: puts it on an isolated pipeline; gets the pipeline, the options, the situation, and
            what `prepare` gave.
        prepare: finds out what it must know of the model first (MagCache's ratios), or None.
    """

    name: str
    note: str
    options: Mapping[str, Any]
    apply: Callable[[Any, dict[str, Any], Situation, Any], None]
    prepare: Callable[[Any, dict[str, Any], Situation], Any] | None = None


PEERS: Registry[Peer] = Registry("peer", "ditaccel.eval.peers")


def register(peer: Peer) -> Peer:
    """Make a peer known as `peer/NAME`; a module that does so when it is imported is enough.

    Raises:
        ConfigError: the name is taken, or cannot be written on a command line.
    """
    if not peer.name.isidentifier():
        raise ConfigError(f"a peer's name must be a word like first_block_cache, not {peer.name!r}")
    return PEERS.add(peer.name, peer)


def peer_options(name: str, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The options of a peer row, defaults filled in.

    Raises:
        ConfigError: unknown peer or option, or a value of the wrong kind.
    """
    peer = PEERS[name]
    options = dict(peer.options)
    for key, text in given:
        if key not in options:
            raise ConfigError(
                f"peer/{name} has no option {key!r}; it has: {', '.join(peer.options)}"
            )
        value, default = parse_value(text), options[key]
        right = isinstance(value, (int, float)) and not isinstance(value, bool)
        if isinstance(default, str):
            right = isinstance(value, str)
        elif isinstance(default, int):
            right = isinstance(value, int) and not isinstance(value, bool)
        if not right:
            kind = type(default).__name__
            raise ConfigError(f"peer/{name}: option {key} needs a value of type {kind}: {text!r}")
        options[key] = value
    return options


def prepare(name: str, pipe: Any, options: dict[str, Any], situation: Situation) -> Any:
    """What the peer must know before its first generation; None for most.

    Raises:
        UnsupportedError: it cannot run on this pipeline, with the reason.
    """
    peer = PEERS[name]
    if peer.prepare is None:
        return None
    with _reasons(name):
        return peer.prepare(isolated(pipe), options, situation)


@contextmanager
def with_peer(
    name: str, pipe: Any, options: dict[str, Any], situation: Situation, prepared: Any
) -> Iterator[Any]:
    """A fresh copy of the pipeline with the peer on it.

    Args:
        name: of a registered peer.
        pipe: the original pipeline; it is not touched.
        options: from `peer_options`.
        situation: steps and branches of the run.
        prepared: from `prepare`.

    Yields:
        The copy to call once.

    Raises:
        UnsupportedError: the peer cannot be applied, or fails while it runs, with the reason.
    """
    with _reasons(name):
        twin = isolated(pipe)
        PEERS[name].apply(twin, options, situation, prepared)
        yield twin


@contextmanager
def _reasons(name: str) -> Iterator[None]:
    """Turns what a peer raises into the reason why it cannot run."""
    try:
        yield
    except DitaccelError:
        raise
    except ImportError as error:
        raise UnsupportedError(
            f"peer/{name}: {error.name or error} is not installed (pip install ditaccel[peers])"
        ) from error
    except Exception as error:
        line = (str(error).strip() or type(error).__name__).split("\n")[0][:200]
        raise UnsupportedError(
            f"peer/{name} does not run on this pipeline: {type(error).__name__}: {line}"
        ) from error
