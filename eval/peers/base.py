"""Peers: other projects' caches, run as rows of the same comparison.

Each generation of a peer gets a fresh `isolated` copy of the pipeline: no state can outlive it,
and nothing that a peer patches at class level can reach another row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from ditaccel.errors import ConfigError, DitaccelError, UnsupportedError

from ..specs import parse_value
from . import cache_dit as peers_cache_dit
from . import diffusers_caches as peers_diffusers
from .isolation import isolated

Prepare = Callable[[Any, dict[str, Any], "Situation"], Any]
Apply = Callable[[Any, dict[str, Any], "Situation", Any], None]


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


@dataclass(frozen=True)
class Peer:
    """One cache of another project.

    Attributes:
        options: names and defaults of its options.
        apply: puts it on an isolated pipeline.
        prepare: what it must know of the model first (MagCache's ratios), or None.
        note: what a reader of its figures must know.
    """

    options: dict[str, Any]
    apply: Apply
    prepare: Prepare | None = None
    note: str = ""


PEERS: dict[str, Peer] = {
    "first_block_cache": Peer(
        {"threshold": 0.05}, peers_diffusers.first_block_cache, note="diffusers"
    ),
    "taylorseer": Peer(
        {"mode": "lite", "interval": 5, "before": 3, "after": 0, "order": 1},
        peers_diffusers.taylorseer,
        note="diffusers; identifiers fitted to the model (its own defaults miss Wan and DiT)",
    ),
    "magcache": Peer(
        {"threshold": 0.06, "max_skip": 3, "retention": 0.2},
        peers_diffusers.magcache,
        peers_diffusers.magcache_ratios,
        note="diffusers; ratios from one calibration generation with another seed",
    ),
    "pab": Peer(
        {"spatial": 2, "cross": 0, "low": 100, "high": 800},
        peers_diffusers.pyramid_attention_broadcast,
        note="diffusers; skips attention only; one state for all guidance branches",
    ),
    "seacache": Peer(
        {"threshold": 0.25, "order": 1, "max_skip": 2},
        peers_diffusers.seacache,
        note="diffusers; made for Wan and Cosmos, elsewhere it caches nothing",
    ),
    "cache_dit": Peer(
        {
            "threshold": 0.08,
            "fn": 8,
            "bn": 0,
            "warmup": 8,
            "max_cached": -1,
            "max_continuous": -1,
            "order": 0,
        },
        peers_cache_dit.cache_dit,
        note="cache-dit's DBCache; order >= 1 adds its TaylorSeer calibrator",
    ),
}


def peer_options(name: str, given: tuple[tuple[str, str], ...]) -> dict[str, Any]:
    """The options of a peer row, defaults filled in.

    Raises:
        ConfigError: unknown peer or option, or a value of the wrong kind.
    """
    peer = PEERS.get(name)
    if peer is None:
        raise ConfigError(f"no peer {name!r}; peers: {', '.join(PEERS)}")
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
def _reasons(name: str) -> Iterator[None]:
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


@contextmanager
def with_peer(
    name: str, pipe: Any, options: dict[str, Any], situation: Situation, prepared: Any
) -> Iterator[Any]:
    """A fresh copy of the pipeline with the peer on it.

    Args:
        name: one of `PEERS`.
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
