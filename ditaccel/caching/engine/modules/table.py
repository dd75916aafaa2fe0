"""A table of steps by modules: who is computed when, in a file or given in Python."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import Any

import yaml
from torch import nn

from ....config import require
from ....core.weight_changes import differs
from ....errors import UsageError
from ....io import given
from ....io.checked import WrongShape, anything, flag, items, number, record, table, text, whole
from ....io.files import write_atomically
from ..gate import resampled
from .sites import Site

COMPUTED, REST = "C", "-"
_FORMAT = 1
_SHAPE = record(
    {"module_table": whole(_FORMAT, _FORMAT), "modules": table(text)},
    {
        "models": table(table(anything)),
        "scheduler": text,
        "timesteps": items(number()),
        "resample": flag,
    },
)


@dataclass(frozen=True)
class ModuleTable:
    """Which modules are computed at which steps of a loop.

    Attributes:
        rules: pattern of module names -> a word with one sign per step, `C` to compute and `-` to
            rest. A pattern is a path in the transformer, such as `transformer_blocks.3.attn1`,
            perhaps behind the transformer's own name, and may hold the wildcards `*`, `?` and
            `[...]`; the first one that fits counts. Modules that none fits are always computed.
        models: component -> fingerprint of its transformer; empty where it suits any.
        scheduler: class of the scheduler that it was made with, for people; "" for any.
        timesteps: of the loop that it was made for; empty where they do not matter.
        resample: whether it may be moved to loops of another number of steps.
        source: where it comes from, for messages.

    Raises:
        ConfigError: words of several lengths or with other signs, or a module that is not computed
            at the first step.
    """

    rules: Mapping[str, str]
    models: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    scheduler: str = ""
    timesteps: tuple[float, ...] = ()
    resample: bool = False
    source: str = "the module schedule"

    def __post_init__(self) -> None:
        require(bool(self.rules), f"{self.source} names no module; give '*.attn1 C-C-', say")
        for pattern, word in self.rules.items():
            require(
                bool(word) and set(word) <= {COMPUTED, REST},
                f"{self.source} has {word!r} for {pattern}; a word has one sign per step, "
                f"{COMPUTED} to compute and {REST} to rest",
            )
            require(
                word[0] == COMPUTED,
                f"{self.source} lets {pattern} rest at the first step, where there is nothing to "
                f"reuse; begin its word with {COMPUTED}",
            )
        lengths = {len(word) for word in self.rules.values()}
        require(
            len(lengths) == 1,
            f"{self.source} has words of {' and '.join(map(str, sorted(lengths)))} steps; all need "
            "as many as the loop has",
        )

    @property
    def steps(self) -> int:
        """Steps of the loop that it was made for."""
        return len(next(iter(self.rules.values())))

    def word(self, component: str, module: str) -> str:
        """The word of a module."""
        names = module, f"{component}.{module}"
        for pattern, word in self.rules.items():
            if any(fnmatchcase(name, pattern) for name in names):
                return word
        return COMPUTED * self.steps

    def computed(self, component: str, module: str, total: int | None) -> frozenset[int]:
        """Steps at which a module is computed in a loop of `total`."""
        word = self.word(component, module)
        steps = frozenset(index for index, sign in enumerate(word) if sign == COMPUTED)
        if self.resample and total not in (None, self.steps):
            assert total is not None
            return resampled(steps, self.steps, total)
        return steps

    def check_modules(self, component: str, modules: Sequence[Site]) -> None:
        """Refuse patterns that fit nothing here.

        Raises:
            ConfigError: one does not, and it is not about another transformer.
        """
        require(bool(modules), f"{self.source}: {component} has no module that can rest")
        names = [name for m in modules for name in (m.name, f"{component}.{m.name}")]
        for pattern in self.rules:
            require(
                any(fnmatchcase(name, pattern) for name in names) or _elsewhere(pattern, component),
                f"{self.source}: {pattern} fits no module of {component}, whose modules are "
                f"{modules[0].name} to {modules[-1].name}",
            )

    def check_model(self, component: str, transformer: nn.Module) -> None:
        """Refuse a transformer that it was not made for.

        Raises:
            ConfigError: it is another one.
        """
        if not self.models:
            return
        require(
            component in self.models,
            f"{self.source} is for {', '.join(self.models)}, not for {component}; make one for "
            "this pipeline",
        )
        why = differs(self.models[component], transformer)
        require(
            not why,
            f"{self.source} was made for another {component}: {why}; load the model that it was "
            "made for, or make one for this model",
        )

    @classmethod
    def of_lines(cls, lines: Sequence[str], resample: bool = False) -> ModuleTable:
        """From lines of a pattern and its word.

        Raises:
            ConfigError: a line is something else, or names a pattern again.
        """
        rules: dict[str, str] = {}
        for line in lines:
            pattern, *word = line.split()
            require(
                len(word) == 1,
                f"{line!r} is not a pattern and a word; write '*.attn1 C-C-'",
            )
            require(pattern not in rules, f"{pattern} is named twice; give each pattern once")
            rules[pattern] = word[0]
        return cls(rules, resample=resample, source="rules")

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> ModuleTable:
        """Read a `.yaml` or `.json` file.

        Raises:
            UsageError: it is missing, or does not hold a table.
            ConfigError: the table is wrong.
        """
        file = given.path(path)
        try:
            content = file.read_text(encoding="utf-8")
            data = _SHAPE(given.parse_yaml(content), "")
        except (OSError, UnicodeDecodeError) as error:
            raise UsageError(f"cannot read the module schedule {file}: {error}") from None
        except (WrongShape, ValueError) as error:
            raise UsageError(f"{file} is not a module schedule: {error}") from None
        return cls(
            data["modules"],
            data.get("models", {}),
            data.get("scheduler", ""),
            tuple(data.get("timesteps", ())),
            data.get("resample", False),
            str(file),
        )

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write a `.yaml` file, whole or not at all.

        Raises:
            UsageError: it cannot be written.
        """
        data = {
            "module_table": _FORMAT,
            "scheduler": self.scheduler,
            "timesteps": list(self.timesteps),
            "resample": self.resample,
            "modules": dict(self.rules),
            "models": {name: dict(model) for name, model in self.models.items()},
        }
        content = yaml.safe_dump(data, sort_keys=False, width=1000)
        write_atomically(given.path(path), lambda file: file.write(content.encode()))


def _elsewhere(pattern: str, component: str) -> bool:
    """Whether a pattern begins with the name of another transformer (`transformer_2.*`)."""
    first = pattern.partition(".")[0]
    return first != component and first.rstrip("_0123456789") == component.rstrip("_0123456789")
