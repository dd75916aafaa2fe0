"""Plans that were found once and are saved: a word for each attention layer and step of a loop."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...config import require
from ...io.checked import choice, items, number, read_record, record, table, text, whole
from ...io.files import write_json
from .planner import LayerContext

_FORMAT = 1


@dataclass(frozen=True)
class SavedPlan:
    """What a search found for one model, size and number of steps.

    Attributes:
        method: that it is for.
        length: tokens of the sequence.
        words: by component, a list of layers, each a list of steps.
        settings: options that it was found with, which must be the same when it is used.
        extra: whatever else the method saved, by component, a list of layers.
    """

    method: str
    length: int
    words: dict[str, list[list[str]]]
    settings: dict[str, float]
    extra: dict[str, list[Any]] = field(default_factory=dict)

    @classmethod
    def load(cls, path: str | os.PathLike[str], method: str) -> SavedPlan:
        """Read a plan.

        Raises:
            UsageError: the file is missing or damaged, or is a plan of another method.
        """
        shape = {
            "format": whole(_FORMAT, _FORMAT),
            "method": choice(method),
            "length": whole(1),
            "words": table(items(items(text, 1), 1)),
            "settings": table(number()),
        }
        found = read_record(Path(path), record(shape), "search again with save_plan")
        return cls(**{name: found.get(name, {}) for name in (*list(shape)[1:], "extra")})

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write it, as a whole or not at all.

        Raises:
            UsageError: the file cannot be written.
        """
        write_json(Path(path), {"format": _FORMAT, **self.__dict__})

    def word(self, context: LayerContext, settings: dict[str, float]) -> str:
        """The word of a call; loops of another number of steps are stretched.

        Raises:
            ConfigError: it was found for another model, size or setting.
        """
        layers = self.words.get(context.component, [])
        require(
            len(layers) == context.layers and self.length == context.length,
            f"the plan is for {len(layers)} attention layers of {context.component or 'it'} and "
            f"{self.length} tokens, but here are {context.layers} and {context.length}; search "
            "again with save_plan",
        )
        require(
            self.settings == settings,
            f"the plan was found with {self.settings}, but the options are {settings}; give those, "
            "or search again with save_plan",
        )
        steps = layers[context.layer]
        total = context.step.total or len(steps)
        return steps[min(context.step.index * len(steps) // total, len(steps) - 1)]
