"""Published schedules: which steps the authors of a method compute for a checkpoint, as data.

Each file of this folder but `checkpoints.yaml` is one source: where its numbers come from, under
which licence, what a skipped step reuses (the payload), and per checkpoint the computed steps of a
loop of `steps` steps, counted from 0. None of them was measured here.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any, Literal

import yaml

# What a skipped step reuses: the residual over the blocks, a forecast of the output, or the mean
# velocity over the last steps.
Payload = Literal["residual", "forecast", "average_velocity"]
# The config of each, but for the steps.
PAYLOADS: Mapping[Payload, Mapping[str, Any]] = {
    "residual": {"method": "step_mask", "target": "residual", "order": 0},
    "forecast": {"method": "step_mask", "target": "output", "order": 1},
    "average_velocity": {"method": "step_mask", "target": "output", "order": 0},
}
# Of a schedule that tells over how many steps the velocity is averaged.
_AVERAGED: Mapping[str, Any] = {"method": "meancache"}
ANY = "any"
_CHECKPOINTS = "checkpoints.yaml"
# `owner/name`, also as the Hub's cache spells it in its folders.
_HUB = re.compile(r"(?:^|/)models--([\w.-]+?)--([\w.-]+?)(?:/|$)|^([\w.-]+)/([\w.-]+)$")


@dataclass(frozen=True)
class Checkpoint:
    """A published model, and what a pipeline of it is recognised by.

    Attributes:
        key: its short name.
        title: its name.
        family: name of its family.
        ids: under which it is on the Hub.
        other: words in a name that make it another checkpoint of the same config.
        pipelines: classes of pipelines that may hold it, empty for any.
        config: values of its transformer's config; empty where they do not tell it from others.
        alone: whether a second transformer makes it another checkpoint.
    """

    key: str
    title: str
    family: str
    ids: tuple[str, ...]
    other: tuple[str, ...] = ()
    pipelines: tuple[str, ...] = ()
    config: Mapping[str, Any] = field(default_factory=dict)
    alone: bool = False


@dataclass(frozen=True)
class PublishedSchedule:
    """The computed steps of one setting for one checkpoint.

    Attributes:
        name: such as `budcache-13`: the source and the number of computed steps.
        checkpoint: key of the checkpoint, or `any`.
        steps: of the loop.
        computed: indices of the computed ones, counted from 0.
        payload: what a skipped step reuses.
        source: paper or address of the numbers.
        licence: of the source.
        spans: steps that the velocity is averaged over behind each computed step but the last;
            empty where they are not known.
    """

    name: str
    checkpoint: str
    steps: int
    computed: tuple[int, ...]
    payload: Payload
    source: str
    licence: str
    spans: tuple[int, ...] = ()

    @property
    def options(self) -> dict[str, Any]:
        """The config of it, as plain data."""
        own = {"steps": self.computed, "total": self.steps}
        if self.spans:
            return {**_AVERAGED, **own, "spans": self.spans}
        return {**PAYLOADS[self.payload], **own}

    @property
    def note(self) -> str:
        """What stands for the payload, empty where nothing has to."""
        replaced = self.payload == "average_velocity" and not self.spans
        return "its spans are not known, so the output is reused" if replaced else ""


def step_list(text: Any) -> tuple[int, ...]:
    """The numbers of a text such as `0-3, 7, 9`."""
    found: list[int] = []
    for part in str(text).split(","):
        low, _, high = part.strip().partition("-")
        found += range(int(low), int(high or low) + 1)
    return tuple(found)


def _read(name: str) -> Any:
    return yaml.safe_load((resources.files(__name__) / name).read_text(encoding="utf-8"))


def _files() -> Iterator[tuple[str, Any]]:
    for entry in sorted(resources.files(__name__).iterdir(), key=lambda e: e.name):
        if entry.name.endswith(".yaml") and entry.name != _CHECKPOINTS:
            yield entry.name, _read(entry.name)


@cache
def checkpoints() -> Mapping[str, Checkpoint]:
    """The checkpoints that schedules are published for, by key."""
    listed = _read(_CHECKPOINTS)
    lists = ("ids", "other", "pipelines")
    found = {}
    for key, entry in listed.items():
        values: dict[str, Any] = {k: tuple(v) if k in lists else v for k, v in entry.items()}
        found[key] = Checkpoint(key, **values)
    return found


@cache
def schedules() -> tuple[PublishedSchedule, ...]:
    """All published schedules, in the order of their files."""
    found = []
    for name, data in _files():
        shared = {key: data[key] for key in ("payload", "source", "licence")}
        for checkpoint, entries in data["schedules"].items():
            entries = dict(entries)
            steps = entries.pop("steps", data["steps"])
            for number, entry in entries.items():
                label = f"{name.removesuffix('.yaml')}-{number}"
                parts = entry if isinstance(entry, dict) else {"computed": entry}
                computed, spans = step_list(parts["computed"]), parts.get("spans")
                each = () if spans is None else tuple(spans.get(i, 1) for i in computed[:-1])
                made = PublishedSchedule(label, checkpoint, steps, computed, **shared, spans=each)
                found.append(made)
    return tuple(found)


def schedules_for(checkpoint: str) -> dict[str, PublishedSchedule]:
    """The schedules for a checkpoint by name, those for any included.

    Args:
        checkpoint: its key, empty for one that is not known.
    """
    return {s.name: s for s in schedules() if s.checkpoint in (checkpoint, ANY)}


def _hub_id(name: str) -> str:
    """The Hub id in a name or in a path of the Hub's cache; empty where there is none."""
    match = _HUB.search(name)
    return "" if match is None else "/".join(part for part in match.groups() if part)


def recognised(
    family: str,
    name: str,
    config: Mapping[str, Any],
    pipeline: str = "",
    transformers: int = 1,
    is_folder: bool = False,
) -> str:
    """Which checkpoint a pipeline holds: its key, empty where it is none, or where that is open.

    Args:
        family: name of its family.
        name: Hub id or folder that it was loaded from, empty where it was made otherwise.
        config: of its first transformer.
        pipeline: its class, empty for a bare transformer.
        transformers: how many it has.
        is_folder: whether `name` is that of a folder, which may be called anything.
    """
    hub = "" if is_folder and "models--" not in name else _hub_id(name)
    last = name.replace("\\", "/").rstrip("/").rpartition("/")[2].lower()
    likely = []
    for each in checkpoints().values():
        if each.family != family or (each.alone and transformers > 1):
            continue
        if each.pipelines and pipeline and pipeline not in each.pipelines:
            continue
        names = {known.lower() for known in each.ids}
        if hub.lower() in names or (not hub and last in {n.partition("/")[2] for n in names}):
            return each.key
        if hub or not each.config or any(word in last for word in each.other):
            continue
        if all(config.get(key) == value for key, value in each.config.items()):
            likely.append(each.key)
    return likely[0] if len(likely) == 1 else ""
