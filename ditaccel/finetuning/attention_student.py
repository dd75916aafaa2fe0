"""The base of students of attention methods: the model under the method's map, learning weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..attention.engine.planner import DenseReason, Planner
from ..attention.engine.runtime import AttentionRuntime, find_attention
from ..attention.engine.tile_planner import dense_at
from ..config import require
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger, is_compiled
from ..core.weight_changes import fingerprint
from ..errors import ConfigError, UnsupportedError
from ..io.adapter import Adapter
from .changes import Change, LowRank, change_of
from .student import Group, Student, Subject
from .teacher import Teacher, TeacherCall


class AttentionStudent(Student):
    """Transformers whose attention can be switched between dense and that of a method.

    The teacher is the same module: with attention dense and, where its own weights are trained,
    their changes taken off (`dense`). `train` is `attention` (the weights of the attention modules)
    or `all` (all weights of the transformer).

    Args:
        rank: of the changes of matrices; None for any change.

    Attributes:
        weights: what the file will hold; its tensors are float32 and learn.
        warned: warnings of its attention, for people.
    """

    trains: ClassVar[tuple[str, ...]] = ("attention", "all")
    low_rank: ClassVar[bool] = True

    def __init__(self, subject: Subject, config: Any, train: str, rank: int | None = None) -> None:
        super().__init__(subject, config, train)
        require(
            rank is None or rank >= 1, f"rank is {rank}; give 1 or more, or None for any change"
        )
        self._rank = rank
        require(
            config.weights is None,
            "finetune starts from the pipeline's own weights; leave weights=… out of the config",
        )
        require(
            config.precision == "model",
            f"precision={config.precision!r} has no gradient; train in the model's precision, and "
            "set it where the weights are used",
        )
        self._ledger = PatchLedger(owner=self)
        self.warned: list[str] = []
        self._runtimes: dict[str, AttentionRuntime] = {}
        self._bases: dict[tuple[str, str], Tensor] = {}
        self._changes: dict[tuple[str, str], Change] = {}
        self._options = replace(config, dense_steps=0, dense_parts=(), break_even=1.0)
        self.weights = self.new_weights(self._options)
        self.weights.learning = True
        try:
            for name, transformer in subject.transformers.items():
                self._install(name, transformer)
        except BaseException:
            self._ledger.undo()
            raise

    def _install(self, name: str, transformer: nn.Module) -> None:
        """Make ready one transformer; whatever changes on it is undone by the ledger."""
        if any(is_compiled(module) for module in transformer.modules()):
            raise UnsupportedError(
                f"{name} is compiled, and the operator of a compiled graph has no gradient; "
                "fine-tune before compiling"
            )
        self.weights.fingerprints[name] = fingerprint(transformer)
        self.add_parts(name, transformer)
        self._add_changes(name, transformer)
        family, planner = self.subject.family, self.planner(self._options)
        runtime = AttentionRuntime(name, transformer, family, planner, self.warned.append)
        runtime.install(self._ledger)
        self._runtimes[name] = runtime

    # -- what a method may replace --

    def new_weights(self, config: Any) -> Adapter:
        """An empty file for a config."""
        return Adapter(config.trained_options(), method=config.method)

    def planner(self, config: Any) -> Planner:
        """The planner under which the model learns."""
        found: Planner = config.planner()
        return found

    def add_parts(self, name: str, transformer: nn.Module) -> None:
        """Make what the method trains besides weights of the model; see `parts`."""

    def parts(self) -> list[Tensor]:
        """Tensors that the method trains besides weights of the model."""
        return []

    # -- weights of the model --

    def _add_changes(self, name: str, transformer: nn.Module) -> None:
        own: set[int] = set()
        if self.train == "all":
            own = {id(p) for p in transformer.parameters()}
        elif self.train == "attention":
            for each in find_attention(transformer, self.subject.family.attention):
                own |= {id(p) for p in each.module.parameters()}
        changes: dict[str, Tensor] = {}
        factors: dict[str, tuple[Tensor, Tensor]] = {}
        for key, parameter in transformer.named_parameters():
            trained = id(parameter) in own
            wanted = parameter.requires_grad
            self._ledger.on_undo(lambda p=parameter, w=wanted: p.requires_grad_(w))  # type: ignore[misc]
            parameter.requires_grad_(trained)
            if trained:
                base = self._bases[name, key] = parameter.data
                self._ledger.on_undo(lambda p=parameter, b=base: setattr(p, "data", b))  # type: ignore[misc]
                change = self._changes[name, key] = change_of(base, self._rank)
                if isinstance(change, LowRank):
                    factors[key] = (change.tensors[0], change.tensors[1])
                else:
                    changes[key] = change.value
        self.weights.changes[name], self.weights.factors[name] = changes, factors
        self.apply()

    def changes(self) -> list[Tensor]:
        """What is added to weights of the transformers."""
        return [tensor for change in self._changes.values() for tensor in change.tensors]

    def groups(self) -> list[Group]:
        """See `Student`."""
        return [Group(self.parts()), Group(self.changes(), "weights_lr")]

    def size(self) -> int:
        """See `Student`: changes are saved in half precision."""
        size = sum(t.numel() * 4 for t in self.parts())
        return size + sum(t.numel() * 2 for t in self.changes())

    def gather(self) -> None:
        """Hand gradients of the transformers' weights over to their changes."""
        for (name, key), change in self._changes.items():
            parameter = self.subject.transformers[name].get_parameter(key)
            gradient, parameter.grad = parameter.grad, None
            change.take(gradient)

    def apply(self, on: bool = True) -> None:
        """Put the changes on the transformers' weights, or take them off."""
        for (name, key), base in self._bases.items():
            parameter = self.subject.transformers[name].get_parameter(key)
            value = self._changes[name, key].value
            parameter.data = (base.float() + value).to(base.dtype) if on else base

    @contextmanager
    def dense(self) -> Iterator[None]:
        """The teacher: own weights. Its attention is dense anyway outside `attending`."""
        self.apply(False)
        try:
            yield
        finally:
            self.apply()

    # -- calls --

    def trains_at(self, step: DenoisingStep) -> bool:
        """See `Student`: steps that the config leaves dense are not trained."""
        return dense_at(self.config, step) is None

    @contextmanager
    def attending(
        self, component: str, step: DenoisingStep, sample: Tensor, named: Mapping[str, Any]
    ) -> Iterator[None]:
        """The method's attention for one transformer call with these latents and arguments."""
        runtime = self._runtimes[component]
        runtime.clear()
        runtime.log.records.clear()
        runtime.log.maps.clear()
        runtime.begin(step, sample, named=named)
        try:
            yield
        finally:
            runtime.clear()

    def output(self, call: TeacherCall, teacher: Teacher) -> Tensor:
        """See `Student`."""
        sample, named = teacher.sample(call), teacher.named(call)
        with self.attending(call.component, call.step, sample, named):
            return teacher.output(call)

    def check(self, teacher: Teacher, item: Any, seed: int) -> None:
        """See `Student`.

        Raises:
            ConfigError: no attention call is sparse, so no weight would ever change.
        """
        first = teacher.first_call(item, seed)
        with torch.no_grad():
            self.output(first, teacher)
        dense = self.dense_reasons(first.component)
        if dense is None:
            return
        why = "; ".join(dict.fromkeys(self.warned)) or ", ".join(sorted(dense))
        what = (
            f"lower min_tokens of the config ({self.config.method}:min_tokens=0), or make larger "
            "pictures or clips"
        )
        if dense != {DenseReason.SHORT}:
            what = "give a config and a call under which attention is sparse"
        raise ConfigError(
            "nothing would be trained, since no attention call is sparse: "
            f"{why or 'it was not called'}. {what}"
        )

    def dense_reasons(self, component: str) -> set[DenseReason] | None:
        """Why every attention call of the last transformer call was dense; None if one was not."""
        causes = [record.cause for record in self._runtimes[component].log.records]
        return None if None in causes else {cause for cause in causes if cause is not None}

    # -- what is kept --

    def described(self) -> dict[str, Any]:
        """See `Student`."""
        return {"options": self.weights.options, "models": self.weights.fingerprints}

    def save(self, path: Path, notes: Mapping[str, Any]) -> int:
        """See `Student`."""
        self.weights.notes = dict(notes)
        return self.weights.save(path)

    def close(self) -> None:
        """Leave the transformers as they were found."""
        self._ledger.undo()
