"""The manifest: every item of a job, settled before anything loads; its id is a hash of all that
decides its output."""

from __future__ import annotations

import hashlib
import json
import unicodedata
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from ..config import what_decides
from ..errors import ConfigError, DitaccelError, UsageError
from ..io import given
from ..io.checked import read_records
from ..io.files import write_atomically
from ..io.models import line_of
from . import names
from .facts import Facts
from .inputs import MAX_PIXELS, check_input
from .jobs import RawRow
from .rows import Row, check_row
from .shapes import ITEM

DEFAULT_FPS = 16.0


@dataclass(frozen=True)
class Item:
    """One picture or video to make.

    Attributes:
        id: 16 hex digits, a hash of model, config, call, prompt, seed, inputs and kind of output.
        row: of the job file.
        name: path of its files under `outputs/`, without suffix.
        prompt: text, or class name.
        negative_prompt: None leaves it to the pipeline.
        class_label: for pipelines that are asked by class.
        seed: of its own generator.
        call: all other arguments of the pipeline call.
        inputs: `image` and `video`: absolute paths or URLs.
        config: acceleration as plain data, None for dense.
        fps: of the video file.
        meta: columns of the user's own.
        error: why it cannot be made; such an item fails without being tried.
    """

    id: str
    row: int
    name: str = ""
    prompt: str = ""
    negative_prompt: str | None = None
    class_label: int | None = None
    seed: int = 0
    call: dict[str, Any] = field(default_factory=dict)
    inputs: dict[str, str] = field(default_factory=dict)
    config: dict[str, Any] | None = None
    fps: float = DEFAULT_FPS
    meta: dict[str, Any] = field(default_factory=dict)
    error: str = ""


@dataclass(frozen=True)
class Settings:
    """What a job's command line decides about its outputs.

    Attributes:
        config: text of the config for rows without one of their own.
        seeds: a row without a seed is made once with each.
        call: arguments for rows that do not set them.
        save: kinds of files: `mp4`, `png`, `frames`, `latents`.
        codec: `h264` or `av1`.
        crf: quality of mp4 files.
        fps: for rows that do not set it; None takes the model's.
        name: template of file names.
        dtype: of the pipeline; `auto` is the choice of the function that makes it.
        allow_remote: inputs may be URLs.
        pipeline: reference of the function that makes the pipeline, which every worker imports;
            empty for the model's own.
        max_input: most pixels of an input image, or of all frames of an input video.
        scheduler: short name of another scheduler (`io.schedulers`); empty for the model's own.
    """

    config: str = "balanced"
    seeds: tuple[int, ...] = (0,)
    call: dict[str, Any] = field(default_factory=dict)
    save: tuple[str, ...] = ("mp4",)
    codec: str = "h264"
    crf: int = 18
    fps: float | None = None
    name: str = names.DEFAULT
    dtype: str = "float32"
    allow_remote: bool = False
    pipeline: str = ""
    max_input: int = MAX_PIXELS
    scheduler: str = ""


def _digest(data: Any) -> str:
    text = json.dumps(data, sort_keys=True, ensure_ascii=False, default=str)
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()[:16]


def _legible(value: Any) -> str:
    """Text that every file can hold, of a row that cannot be made."""
    return value.encode("utf-8", "backslashreplace").decode() if isinstance(value, str) else ""


class Planner:
    """Turns raw rows into items.

    Args:
        facts: of the model.
        settings: of the job.
        base: folder that relative input paths start from.
    """

    def __init__(self, facts: Facts, settings: Settings, base: Path) -> None:
        self.facts, self.settings, self.base = facts, settings, base
        self.template = names.check_template(settings.name)
        self._configs = {settings.config: facts.resolve(settings.config)}
        self._inputs: dict[str, str] = {}
        self._looked_at: set[tuple[str, str]] = set()
        self._takes: Counter[str] = Counter()

    def plan(self, rows: Iterable[RawRow]) -> tuple[list[Item], int]:
        """All items in the order of the rows.

        Returns:
            The items, and how many rows were left out as exact repetitions of earlier ones.
        """
        items: dict[str, Item] = {}
        taken: dict[str, Item] = {}
        repeated = 0
        for raw in rows:
            for item in self._items(raw):
                if item.id in items:
                    repeated += 1
                    continue
                key = unicodedata.normalize("NFC", item.name).casefold()
                other = taken.get(key)
                if other is not None and not item.error:
                    item = replace(
                        item,
                        error=f"its file name {item.name!r} is that of row {other.row}, too; add "
                        "{id} or {seed} to the name template, or give rows a name",
                    )
                elif not item.error:
                    taken[key] = item
                items[item.id] = item
        return list(items.values()), repeated

    def _items(self, raw: RawRow) -> list[Item]:
        try:
            if raw.error:
                raise ConfigError(raw.error)
            row = check_row(raw.row, raw.values, self.base, self.settings.allow_remote)
            seeds = self.settings.seeds if row.seed is None else (row.seed,)
            if row.name is not None and len(seeds) > 1:
                raise ConfigError("a row with a name takes one seed: give it a seed, too")
            items = [self._item(row, seed) for seed in seeds]
            for item in items:
                _line(item)
            return items
        except DitaccelError as error:
            reason = str(error)
        except (OSError, ValueError, TypeError, ArithmeticError, RecursionError) as error:
            # A row is somebody's text: whatever else it makes Python raise is its own fault alone.
            reason = f"it cannot be read ({type(error).__name__}: {line_of(error)})"
        return [
            Item(
                id=_digest([raw.row, given.shown(raw.values, 10_000)]),
                row=raw.row,
                prompt=_legible(raw.values.get("prompt")),
                error=_legible(given.one_line(reason)),
            )
        ]

    def _config(self, text: str | None) -> dict[str, Any] | None:
        text = text or self.settings.config
        if text not in self._configs:
            self._configs[text] = self.facts.resolve(text)
        return self._configs[text]

    def _check_input(self, key: str, path: str) -> None:
        if (key, path) not in self._looked_at:
            check_input(key, path, self.settings.max_input)
            self._looked_at.add((key, path))

    def _fingerprint(self, path: str) -> str:
        if path not in self._inputs:
            digest = hashlib.sha256()
            try:
                if "://" not in path:
                    with open(path, "rb") as file:
                        while chunk := file.read(1 << 20):
                            digest.update(chunk)
            except OSError as error:
                raise ConfigError(f"{path} cannot be read ({error.strerror})") from None
            if digest.digest() == hashlib.sha256().digest():
                digest.update(path.encode())
            self._inputs[path] = digest.hexdigest()
        return self._inputs[path]

    def _subject(self, row: Row) -> tuple[str, int | None]:
        """The prompt and the class number."""
        facts = self.facts
        if not facts.by_class:
            if row.class_label is not None:
                raise ConfigError(f"{facts.pipeline} takes no class_label; give a prompt")
            if "prompt" in facts.arguments and not row.prompt:
                raise ConfigError("no prompt")
            return row.prompt or "", None
        if row.class_label is None and not row.prompt:
            raise ConfigError("no class: give its name as prompt, or class_label")
        named = row.prompt or "" if row.class_label is None else row.class_label
        number = facts.number_of(named) if isinstance(named, str) else named
        if facts.labels and number not in facts.labels.values():
            raise ConfigError(f"the model has no class {number}; it has {len(facts.labels)}")
        named = next((name for name, n in facts.labels.items() if n == number), str(number))
        return row.prompt or named, number

    def _item(self, row: Row, seed: int) -> Item:
        facts, settings = self.facts, self.settings
        call = {**facts.sheet.call, **settings.call, **row.call}
        for key in (*call, *row.inputs):
            if key not in facts.arguments:
                raise ConfigError(f"{facts.pipeline} takes no argument {key!r}")
        negative = row.negative_prompt
        if "negative_prompt" not in facts.arguments:
            if negative is not None:
                raise ConfigError(f"{facts.pipeline} takes no negative_prompt")
        elif negative is None:
            negative = facts.sheet.negative_prompt
        prompt, number = self._subject(row)
        given_keys = {"prompt", "class_labels", "negative_prompt", "generator", *call, *row.inputs}
        for key, optional in facts.arguments.items():
            if not optional and key not in given_keys:
                raise ConfigError(f"{facts.pipeline} needs {key!r}")
        for key, path in row.inputs.items():
            self._check_input(key, path)
        if facts.starts_from and facts.starts_from not in given_keys:
            raise ConfigError(
                f"{facts.starts_from}: {facts.pipeline} starts from one; give its path in that "
                "column"
            )
        item = Item(
            id="",
            row=row.row,
            prompt=prompt,
            negative_prompt=negative,
            class_label=number,
            seed=seed,
            call=dict(sorted(call.items())),
            inputs=row.inputs,
            config=self._config(row.config),
            fps=row.fps or settings.fps or facts.sheet.fps or DEFAULT_FPS,
            meta=row.meta,
        )
        item = replace(item, id=self._id(item))
        return replace(item, name=self._name(item, row))

    def _id(self, item: Item) -> str:
        settings = self.settings
        keys = ("prompt", "negative_prompt", "class_label", "seed", "call", "config", "fps")
        decides = {key: getattr(item, key) for key in keys}
        if item.config is not None:  # tuned again with the same outcome, it makes the same output
            decides["config"] = what_decides(item.config)
        decides["inputs"] = {k: self._fingerprint(v) for k, v in item.inputs.items()}
        decides["model"] = self.facts.fingerprint
        decides["output"] = [settings.save, settings.codec, settings.crf, settings.dtype]
        if settings.scheduler:
            decides["scheduler"] = settings.scheduler
        return _digest(decides)

    def _name(self, item: Item, row: Row) -> str:
        if row.name is not None:
            return row.name
        take = self._takes[item.prompt]
        self._takes[item.prompt] += 1
        values = {
            "id": item.id[:8],
            "row": item.row,
            "prompt": item.prompt,
            "text": item.prompt,
            "seed": item.seed,
            "take": take,
        }
        values |= {f"meta.{key}": value for key, value in item.meta.items()}
        return names.fill(self.template, values)


def _line(item: Item) -> bytes:
    """An item as a line of the manifest."""
    return (json.dumps(asdict(item), ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_manifest(path: Path, items: Sequence[Item], drafts: Path | None = None) -> None:
    """One item a line; for `drafts` see `write_atomically`.

    Raises:
        UsageError: it cannot be written.
    """
    text = b"".join(map(_line, items))
    write_atomically(path, lambda file: file.write(text), drafts)


def read_manifest(path: Path) -> list[Item]:
    """What `write_manifest` wrote.

    Raises:
        UsageError: missing, damaged, or of another version.
    """
    if not path.is_file():
        raise UsageError(f"{path} is missing: {path.parent} holds no job")
    try:
        found = read_records(path, ITEM, "run the command again that made it")
        return [Item(**line) for line in found]
    except TypeError as error:
        raise UsageError(f"{path} was written by another version ({error})") from None
