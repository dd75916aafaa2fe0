"""A watch on a job: a random part of its items is also made dense, and compared.

    audit/ID.json   what came of one audited item

Which items these are depends on their ids alone, so workers, shards, order and resumption do not
matter. If the audited items of a config miss the target, items that have not been begun are made
with the next safer config, or no more items are made. Every worker concludes this from the audited
items in the same way, so nothing else is written down.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..config import what_decides
from ..errors import ConfigError, DitaccelError
from ..io.frames import psnr
from ..io.models import line_of
from ..reports.audited import Audited
from .encode import thumbnail
from .facts import DENSE, Facts
from .folder import DENSE_THUMBNAIL, JobFolder
from .making import Made
from .manifest import Item

Config = dict[str, Any] | None
# Presets, the fastest first.
_PRESETS = ("fast", "balanced", "safe")


def key_of(config: Config) -> str:
    """A text that is equal for configs that do the same."""
    return json.dumps(None if config is None else what_decides(config), sort_keys=True)


@dataclass(frozen=True)
class Audit:
    """What to audit, and what happens when the target is missed.

    Attributes:
        share: of the items that are also made dense, above 0 and at most 1.
        target: PSNR to dense in dB that the mean of all items should reach; None only measures.
        stop: whether a missed target ends the job, instead of leading to a safer config.
        safer: for each config that items ask for (`key_of`), the configs that follow it, each as
            its name and its data.
    """

    share: float
    target: float | None = None
    stop: bool = False
    safer: dict[str, list[tuple[str, Config]]] = field(default_factory=dict)

    def chooses(self, item: Item) -> bool:
        """Whether an item is audited; dense ones have nothing to be compared with."""
        if item.config is None or item.error:
            return False
        digest = hashlib.sha256(f"audit {item.id}".encode()).hexdigest()[:13]
        return int(digest, 16) < self.share * 16**13

    def name_of(self, config: Config) -> str:
        """Name of a config that items are made with as a safer one; "" if they ask for it."""
        key = key_of(config)
        if key in self.safer:
            return ""
        names = (name for chain in self.safer.values() for name, c in chain if key_of(c) == key)
        return next(names, "")


def safer_than(facts: Facts, config: Config) -> list[tuple[str, Config]]:
    """The presets that are safer than a config, then dense.

    How a config that is not a preset compares with them is not known: the safest preset follows it.
    """
    presets: list[tuple[str, Config]] = []
    for name in _PRESETS:
        try:
            presets.append((name, facts.resolve(name)))
        except DitaccelError:  # the family has none of that name
            continue
    known = [preset for _, preset in presets]
    after = known.index(config) + 1 if config in known else max(0, len(known) - 1)
    return [*presets[after:], (DENSE, None)]


def plan_audit(
    share: float | None,
    target: float | None,
    stop: bool,
    facts: Facts,
    items: Sequence[Item],
    save: Sequence[str],
) -> Audit | None:
    """The audit that a command's options ask for; None without one.

    Raises:
        ConfigError: options that need an audit, or a job without pictures.
    """
    if share is None:
        for name, value in (("audit_target", target is not None), ("audit_stop", stop)):
            if value:
                raise ConfigError("there is no audit; say which share of the items: 0.02", name)
        return None
    if stop and target is None:
        raise ConfigError("there is no level to stop at; give one, such as psnr=30", "audit_stop")
    if set(save) <= {"latents"}:
        raise ConfigError(
            "an audit compares pictures, and only latents are saved; save png or mp4 as well",
            "audit",
        )
    configs = {key_of(item.config): item.config for item in items if item.config is not None}
    chains = {} if target is None else {k: safer_than(facts, c) for k, c in configs.items()}
    return Audit(share, target, stop, chains)


def parse_audit(data: dict[str, Any] | None) -> Audit | None:
    """An audit from plain data."""
    if data is None:
        return None
    safer = {key: [(name, c) for name, c in chain] for key, chain in data["safer"].items()}
    return Audit(**{**data, "safer": safer})


def estimates(lines: Iterable[dict[str, Any]]) -> dict[str, Audited]:
    """What is known of each config (`key_of`).

    Args:
        lines: of audited items, each with `config` and `psnr`.
    """
    levels: dict[str, list[float]] = {}
    for line in lines:
        levels.setdefault(key_of(line["config"]), []).append(float(line["psnr"]))
    return {key: Audited(found) for key, found in levels.items()}


class Watch:
    """The audited items of a job and what follows from them, as one process sees it.

    Args:
        folder: of the job.
        audit: what to audit.
    """

    def __init__(self, folder: JobFolder, audit: Audit) -> None:
        self.audit = audit
        self._folder = folder
        self._known: dict[str, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def _estimates(self) -> dict[str, Audited]:
        with self._lock:
            self._known |= self._folder.audits(self._known)
            return estimates(self._known.values())

    def _misses(self, found: Audited | None) -> bool:
        target = self.audit.target
        return found is not None and target is not None and found.misses(target)

    @property
    def stopped(self) -> bool:
        """Whether no more items are to be made."""
        if not self.audit.stop:
            return False
        found = self._estimates()
        return any(self._misses(found.get(key)) for key in self.audit.safer)

    def current(self, item: Item) -> Item:
        """An item with the config that it is to be made with now; its id stays the same."""
        chain = self.audit.safer.get(key_of(item.config), ())
        if not chain or self.audit.stop:
            return item
        found, config = self._estimates(), item.config
        for _, safer in chain:
            if not self._misses(found.get(key_of(config))):
                break
            config = safer
        return item if config == item.config else replace(item, config=config)

    def compared(
        self,
        items: Sequence[Item],
        made: Sequence[Made],
        dense: Callable[[Item], list[Made] | Exception | None],
    ) -> dict[str, dict[str, Any]]:
        """Make the items that the audit chooses dense as well, and compare.

        Args:
            items: that were made.
            made: their outputs.
            dense: makes an item without acceleration; returns the error if it fails.

        Returns:
            By the id of each chosen item: PSNR and seconds of the dense run, or why there are none.
        """
        found: dict[str, dict[str, Any]] = {}
        for item, one in zip(items, made, strict=True):
            if one.frames is None or not self.audit.chooses(item):
                continue
            came = dense(item)
            if isinstance(came, list) and came[0].frames is not None:
                reference, turn = came[0].frames, came[0].turn
                found[item.id] = {
                    "psnr": psnr(one.frames, reference),
                    "seconds": turn.denoise_seconds + turn.decode_seconds,
                    DENSE_THUMBNAIL: thumbnail(reference),
                }
            else:
                why = line_of(came) if isinstance(came, Exception) else "calls kept colliding"
                found[item.id] = {"error": why}
        return found
