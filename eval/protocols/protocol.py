"""A protocol: prompts, seeds, steps, metrics, and what others have published with it.

Each YAML file of this folder is one. A YAML file of the user's in the same form works as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from ditaccel.errors import UsageError
from ditaccel.io import given
from ditaccel.io.checked import (
    WrongShape,
    anything,
    choice,
    items,
    maybe,
    number,
    record,
    table,
    text,
    whole,
)

_CLASSES = record({"classes": whole(1)}, {"each": whole(1)})
_FILE = record({"count": whole(1), "what": text, "where": text}, {"each": whole(1)})
_OWN = record({"count": whole(1)}, {"each": whole(1)})
_PUBLISHED = record(
    {"label": text, "source": text, "figures": table(number())}, {"speedup": maybe(text)}
)
_SHAPE = record(
    {
        "title": text,
        "about": text,
        "pipeline": text,
        "steps": whole(1),
        "save": items(choice("png", "frames", "mp4"), 1),
        "metrics": items(text, 1),
        "published": items(_PUBLISHED),
    },
    {
        "model": text,
        "classes": _CLASSES,
        "prompts": _FILE,
        "own_prompts": _OWN,
        "scheduler": text,
        "call": table(anything),
        "name": text,
        "negative_prompt": text,
        "features": text,
        "elsewhere": text,
    },
)
_SUFFIX = ".yaml"


@dataclass(frozen=True)
class Published:
    """A row that others have published; none of it was measured here.

    Attributes:
        label: of the method and its setting.
        source: where it is published, and what differs from the protocol.
        figures: by the metric's key.
        speedup: as it is published, with its kind where that is not seconds.
    """

    label: str
    source: str
    figures: Mapping[str, float]
    speedup: str | None = None


@dataclass(frozen=True)
class Protocol:
    """How a table of the literature is made.

    Attributes:
        name: short name.
        title: in headers.
        about: the setting in one line, and where it comes from.
        pipeline: class of the pipelines that it is for.
        steps: scheduler steps of the dense runs.
        save: kinds of files, of which one is raw (`png` or `frames`).
        metrics: keys of metrics.
        published: rows of others.
        model: what published rows are of: a checkpoint on the Hub, or a sample's folder.
        classes: number of classes where the model is asked by class, else 0.
        each: samples per prompt or class, with seeds of their own.
        count: prompts in the set, or classes.
        own_prompts: whether the prompts are those that the model comes with (`sample.json`).
        what: the prompt set, where it is a file of the user's.
        where: how to get that file.
        scheduler: short name of the scheduler; "" keeps the model's own.
        call: arguments of the pipeline call.
        template: of file names; "" for the usual one.
        negative_prompt: of all samples; None leaves it to the pipeline.
        features: extractor that published distances are of; "" where there are none.
        elsewhere: how to get figures that belong to the protocol and are not measured here.
    """

    name: str
    title: str
    about: str
    pipeline: str
    steps: int
    save: tuple[str, ...]
    metrics: tuple[str, ...]
    published: tuple[Published, ...]
    model: str = ""
    classes: int = 0
    each: int = 1
    count: int = 0
    own_prompts: bool = False
    what: str = ""
    where: str = ""
    scheduler: str = ""
    call: Mapping[str, Any] = field(default_factory=dict)
    template: str = ""
    negative_prompt: str | None = None
    features: str = ""
    elsewhere: str = ""

    @property
    def samples(self) -> int:
        """Samples of one row."""
        return self.each * self.count

    def rows(self, prompts: str | None, limit: int | None = None) -> list[dict[str, Any]]:
        """The rows of its job file.

        Args:
            prompts: file of the prompt set, for protocols by text: the user's or the model's.
            limit: take only the first ones; None for all.

        Raises:
            UsageError: the prompt set is missing or empty.
        """
        if self.classes:
            count = self.samples if limit is None else min(limit, self.samples)
            return [{"class_label": i % self.classes, "seed": i} for i in range(count)]
        if prompts is None:
            raise UsageError(
                f"{self.name} takes {self.what}, which cannot be shipped; give a file with one "
                f"prompt per line. {self.where}",
                "prompts",
            )
        path = given.path(prompts)
        try:
            lines = given.lines(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read as text ({error})", "prompts") from None
        found = [prompt for line in lines if (prompt := given.prompt_of(line)) is not None]
        if not found:
            raise UsageError(f"{path} holds no prompt; write one per line", "prompts")
        negative = self.negative_prompt
        more = {} if negative is None else {"negative_prompt": negative}
        seeds = range(self.each)
        return [{"prompt": p, "seed": seed, **more} for p in found for seed in seeds][:limit]


def names() -> list[str]:
    """Names of the protocols that are shipped."""
    folder = resources.files(__package__)
    return sorted(
        entry.name.removesuffix(_SUFFIX)
        for entry in folder.iterdir()
        if entry.name.endswith(_SUFFIX)
    )


def load(name: str) -> Protocol:
    """A protocol by its name, or by the path of a file.

    Raises:
        UsageError: there is none, or its file is not one.
    """
    known = names()
    if name in known:
        content = (resources.files(__package__) / f"{name}{_SUFFIX}").read_text(encoding="utf-8")
    else:
        path = given.path(name)
        if path.suffix not in (_SUFFIX, ".yml") or not path.is_file():
            raise UsageError(
                f"no protocol {name!r}{given.suggest(name, known)}; or name a YAML file of your own"
            )
        content, name = path.read_text(encoding="utf-8"), Path(name).stem
    try:
        return _parsed(name, _SHAPE(yaml.safe_load(content), ""))
    except (yaml.YAMLError, WrongShape) as error:
        raise UsageError(f"{name}: not a protocol ({given.one_line(str(error))})") from None


def _parsed(name: str, data: dict[str, Any]) -> Protocol:
    ways = [key for key in ("classes", "prompts", "own_prompts") if key in data]
    if len(ways) != 1:
        raise WrongShape("it must have either classes or prompts or own_prompts")
    asked = data[ways[0]]
    classes = asked.get("classes", 0)
    return Protocol(
        name=name,
        title=data["title"],
        about=data["about"],
        pipeline=data["pipeline"],
        steps=data["steps"],
        save=tuple(data["save"]),
        metrics=tuple(data["metrics"]),
        published=tuple(Published(**row) for row in data["published"]),
        model=data.get("model", ""),
        classes=classes,
        each=asked.get("each", 1),
        count=classes or asked["count"],
        own_prompts="own_prompts" in data,
        what=asked.get("what", ""),
        where=asked.get("where", ""),
        scheduler=data.get("scheduler", ""),
        call=data.get("call", {}),
        template=data.get("name", ""),
        negative_prompt=data.get("negative_prompt"),
        features=data.get("features", ""),
        elsewhere=data.get("elsewhere", ""),
    )
