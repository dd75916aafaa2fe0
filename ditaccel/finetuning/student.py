"""Student: what is trained, what runs in place of it meanwhile, its loss, and what is saved.

A student is one file in `students/`, found by being there; installed plugins may bring others. It
says for which method's config it trains::

    @student(CheckersConfig)
    class CheckersStudent(AttentionStudent):
        ...

The frame (`run.py`, `training.py`, `rounds.py`) serves every student: lessons from the dense
pipeline, the optimiser, averaging, checkpoints from which a killed run resumes exactly, stopping at
a loss that is not finite, several processes, progress, and the curve of the loss.
"""

from __future__ import annotations

import importlib
import math
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

import torch
from torch import Tensor, nn

from ..config import MethodConfig, choice
from ..core.denoising.tracker import DenoisingStep
from ..errors import ConfigError
from ..pipelines import FamilyAdapter
from ..plugins import load_plugins
from .teacher import Teacher, TeacherCall

# Called with a loss; adds up what an update learns from.
Backward = Callable[[Tensor], None]


@dataclass(frozen=True)
class Subject:
    """What a student works on.

    Attributes:
        pipe: the pipeline.
        transformers: by component name.
        family: of the transformers.
        call: arguments of every pipeline call.
    """

    pipe: Any
    transformers: Mapping[str, nn.Module]
    family: FamilyAdapter
    call: Mapping[str, Any]


@dataclass(frozen=True)
class Generation:
    """One generation as a lesson: `Teacher.follow(item, seed, …)` runs it.

    Attributes:
        item: a prompt, or arguments of the pipeline call.
        seed: of its noise.
    """

    item: Any
    seed: int


@dataclass(frozen=True)
class Group:
    """Tensors that are trained at one rate.

    Attributes:
        tensors: float32 leaves; they are changed in place.
        rate: which argument of `finetune` is their learning rate.
    """

    tensors: list[Tensor]
    rate: Literal["lr", "weights_lr"] = "lr"


class Student(ABC):
    """What fine-tuning trains for one method, on the transformers of one pipeline.

    Args:
        subject: what it works on.
        config: of the method.
        train: one of `trains`.

    Attributes:
        trains: what `train` may be; the first is the default.
        lessons: what it learns from: `calls`, shuffled transformer calls of dense generations with
            their outputs (`TeacherCall`); or `generations` (`Generation`), which it runs itself.
        file: name of the file that `save` writes into the folder of the run.
        low_rank: whether it takes the argument `rank`.
    """

    trains: ClassVar[tuple[str, ...]]
    lessons: ClassVar[Literal["calls", "generations"]] = "calls"
    file: ClassVar[str] = "adapter.safetensors"
    low_rank: ClassVar[bool] = False

    def __init__(self, subject: Subject, config: Any, train: str) -> None:
        choice("train", train, self.choices(config))
        self.subject, self.config, self.train = subject, config, train

    # -- what is trained --

    @classmethod
    def choices(cls, config: Any) -> tuple[str, ...]:
        """What `train` may be under a config; the first is the default."""
        return cls.trains

    @abstractmethod
    def groups(self) -> list[Group]:
        """What learns; always the same tensors in the same order."""

    def size(self) -> int:
        """Bytes of the file that `save` will write, about."""
        return sum(t.numel() * 4 for group in self.groups() for t in group.tensors)

    def gather(self) -> None:  # noqa: B027
        """Called after the backward: hand gradients over to the tensors of `groups`."""

    def apply(self) -> None:  # noqa: B027
        """The tensors of `groups` have changed: put them in place, clamp them."""

    # -- what it learns from --

    def trains_at(self, step: DenoisingStep) -> bool:
        """Whether a step is learnt from: where the method is dense, it has nothing to learn."""
        return True

    def check(self, teacher: Teacher, item: Any, seed: int) -> None:  # noqa: B027
        """Look at the first call of a generation, before anything is written.

        Raises:
            ConfigError: there is nothing to learn under this config and call.
        """

    def dense(self) -> AbstractContextManager[None]:
        """The teacher, for a while: the transformers exactly as they were found."""
        return nullcontext()

    @abstractmethod
    def output(self, call: TeacherCall, teacher: Teacher) -> Tensor:
        """What the student returns for a transformer call, `(B, …)`; autograd follows."""

    def learn(self, lesson: Any, teacher: Teacher, backward: Backward) -> None:
        """Learn from one lesson: hand each part of the loss to `backward`, which also averages over
        the lessons of an update. By default the mean squared error of the output.
        """
        output = self.output(lesson, teacher)
        target = lesson.target.to(output.device)
        backward((output.float() - target.float()).square().mean())

    def error(self, lessons: Sequence[Any], teacher: Teacher) -> float:
        """Relative error (RMS) of the outputs for lessons that are not trained on."""
        off = whole = 0.0
        with torch.no_grad():
            for call in lessons:
                target = call.target.float()
                off += float((self.output(call, teacher).float().cpu() - target).square().sum())
                whole += float(target.square().sum())
        return math.sqrt(off / whole)

    # -- what is kept --

    @abstractmethod
    def described(self) -> dict[str, Any]:
        """What a run that is resumed must agree on, as JSON: `options` and `models`."""

    @abstractmethod
    def save(self, path: Path, notes: Mapping[str, Any]) -> int:
        """Write the file that users hand to the method's config; returns its size in bytes."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint needs besides the tensors of `groups`: tensors and plain values."""
        return {}

    def load_state(self, state: Mapping[str, Any]) -> None:  # noqa: B027
        """Take over what `state` gave."""

    @abstractmethod
    def close(self) -> None:
        """Leave the transformers as they were found."""


# -- which student trains for which config --

S = TypeVar("S", bound=type[Student])
_STUDENTS: dict[type[MethodConfig], type[Student]] = {}
_DEFAULT: list[type[MethodConfig]] = []


def student(config: type[MethodConfig], *, default: bool = False) -> Callable[[S], S]:
    """Register the student of a method.

    Args:
        config: the method's config class.
        default: whether it is trained where `finetune` is given no config.
    """

    def register(cls: S) -> S:
        _STUDENTS[config] = cls
        if default and config not in _DEFAULT:
            _DEFAULT.append(config)
        return cls

    return register


def students() -> dict[str, type[Student]]:
    """Method name -> its student."""
    room = importlib.import_module(f"{__package__}.students")
    for module in pkgutil.iter_modules(room.__path__):
        importlib.import_module(f"{room.__name__}.{module.name}")
    load_plugins()
    return {config.method: cls for config, cls in _STUDENTS.items()}


def student_of(config: Any) -> type[Student]:
    """The student that trains for a config.

    Raises:
        ConfigError: the method has nothing to train.
    """
    known = students()
    found = _STUDENTS.get(type(config))
    if found is None:
        name = getattr(config, "method", repr(config))
        raise ConfigError(
            f"{name} has nothing to train; give a config of one of: {', '.join(sorted(known))}",
            "config",
        )
    return found


def default_config() -> MethodConfig:
    """The config that is trained for where none is given."""
    students()
    return _DEFAULT[0]()
