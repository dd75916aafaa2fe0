"""Which lessons an update of fine-tuning learns from."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from ..config import require
from ..errors import ConfigError
from .student import Generation, Student
from .teacher import Teacher, TeacherCall

_PER_ROUND = 4  # generations that are recorded at a time
_HELD_OUT = 16  # calls that the error before and after is measured on


class Rounds:
    """What the student asks for: generations, or calls of dense ones.

    Calls are recorded some generations at a time and shuffled. All follows from the number of the
    update, so a run that was killed gets the same ones again.

    Args:
        student: who says what it learns from; its weights are taken off meanwhile.
        teacher: runs the dense pipeline.
        data: prompts, or mappings of call arguments.
        batch: lessons per update and process.
        seed: of noise and order.
        rank: of this process.
        world: number of processes.
    """

    def __init__(
        self,
        student: Student,
        teacher: Teacher,
        data: Sequence[Any],
        *,
        batch: int,
        seed: int,
        rank: int,
        world: int,
    ) -> None:
        self._student, self._teacher, self._data = student, teacher, data
        self._batch, self._seed = batch, seed
        self._rank, self._world = rank, world
        self._round: tuple[int, list[TeacherCall]] = (-1, [])
        self._rounds_of: int | None = None

    def _item(self, number: int) -> list[TeacherCall]:
        """The calls of one generation; which, and with which noise, follows from the number."""
        return self._generation(number % len(self._data), self._seed + number)

    def _generation(self, at: int, seed: int) -> list[TeacherCall]:
        try:
            with self._student.dense():
                found = self._teacher.calls(self._data[at], seed, self._student.trains_at)
        except ConfigError as error:
            raise ConfigError(f"item {at} of data: {error}") from None
        require(
            bool(found),
            "no step of a generation is left to train on; lower dense_steps or dense_parts of the "
            "config, or give the call more steps",
        )
        return found

    def lessons(self, step: int) -> Sequence[Any]:
        """The lessons of one update; the same for a run that was killed and resumes."""
        if self._student.lessons == "generations":
            first = (step * self._world + self._rank) * self._batch
            numbers = range(first, first + self._batch)
            return [Generation(self._data[n % len(self._data)], self._seed + n) for n in numbers]
        return self._calls(step)

    def _calls(self, step: int) -> list[TeacherCall]:
        if self._rounds_of is None:
            self._load_round(0)
            self._rounds_of = max(1, len(self._round[1]) // self._batch)
        number, place = divmod(step, self._rounds_of)
        if self._round[0] != number:
            self._load_round(number)
        first = place * self._batch
        return self._round[1][first : first + self._batch]

    def _load_round(self, number: int) -> None:
        first = (number * self._world + self._rank) * _PER_ROUND
        calls = [c for i in range(_PER_ROUND) for c in self._item(first + i)]
        generator = torch.Generator().manual_seed(self._seed + first)
        order = torch.randperm(len(calls), generator=generator).tolist()
        self._round = (number, [calls[i] for i in order])

    def held_out(self) -> Sequence[Any]:
        """Lessons of the last item with noise that training never draws."""
        at, seed = len(self._data) - 1, 2**40 + self._seed
        if self._student.lessons == "generations":
            return [Generation(self._data[at], seed)]
        calls = self._generation(at, seed)
        spread = torch.linspace(0, len(calls) - 1, min(_HELD_OUT, len(calls))).round().long()
        return [calls[i] for i in spread.tolist()]
