"""The student of fine-tuning: the pipeline's transformers under SLA, with weights that learn."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from ..attention.engine.planner import DenseReason
from ..attention.engine.runtime import AttentionRuntime, find_attention
from ..attention.sla import SLAConfig
from ..attention.sla.defaults import TRAINED
from ..attention.sla.planner import SLAPlanner
from ..attention.sla.weights import SLAWeights, fingerprint
from ..config import choice, require
from ..core.denoising.tracker import DenoisingStep
from ..core.patching import PatchLedger, is_compiled
from ..errors import UnsupportedError
from ..pipelines import FamilyAdapter

TRAIN = ("projection", "attention", "all")


class Student:
    """Transformers whose attention can be switched between dense and SLA.

    The teacher is the same module: with attention dense and, where its own weights are trained,
    their changes taken off (`dense`).

    Args:
        transformers: by component name.
        adapter: their family.
        config: of the attention, without weights; in mode `sla` or `combined` (the default).
        train: `projection`, `attention` (projections and the weights of the attention modules) or
            `all` (projections and all weights).

    Attributes:
        sla: what the file will hold; its tensors are float32 and learn.
        warned: warnings of its attention, for people.
    """

    def __init__(
        self,
        transformers: Mapping[str, nn.Module],
        adapter: FamilyAdapter,
        config: SLAConfig,
        train: str,
    ) -> None:
        choice("train", train, TRAIN)
        require(
            config.weights is None,
            "finetune starts from the pipeline's own weights; leave SLAConfig(weights=…) out",
        )
        require(
            config.precision == "model",
            f"precision={config.precision!r} has no gradient; train in the model's precision, and "
            "set it where the weights are used",
        )
        self._transformers = dict(transformers)
        self._ledger = PatchLedger(owner=self)
        self.warned: list[str] = []
        mode = config.mode or "combined"
        require(
            mode in TRAINED,
            f"mode={mode!r} has nothing to train; choose one of: {', '.join(TRAINED)}",
        )
        config = replace(config, mode=mode, dense_steps=0, break_even=1.0)
        options = SLAPlanner(config, None).options
        self.sla = SLAWeights(options, source="the weights in training", learning=True)
        self._runtimes: dict[str, AttentionRuntime] = {}
        self._bases: dict[tuple[str, str], Tensor] = {}
        for name, transformer in self._transformers.items():
            if any(is_compiled(module) for module in transformer.modules()):
                raise UnsupportedError(
                    f"{name} is compiled, and the operator of a compiled graph has no gradient; "
                    "fine-tune before compiling"
                )
            self.sla.fingerprints[name] = fingerprint(transformer)
            self._add_projections(name, transformer, adapter)
            self._add_changes(name, transformer, adapter, train)
            planner = SLAPlanner(config, self.sla)
            runtime = AttentionRuntime(name, transformer, adapter, planner, self.warned.append)
            runtime.install(self._ledger)
            self._runtimes[name] = runtime

    def _add_projections(self, name: str, transformer: nn.Module, adapter: FamilyAdapter) -> None:
        layers = []
        for each in find_attention(transformer, adapter.attention):
            heads = getattr(each.module, "heads", None)
            weight = getattr(getattr(each.module, "to_q", None), "weight", None)
            if not heads or weight is None:
                raise UnsupportedError(
                    f"{name}: {each.name} has no `heads` and `to_q`, from which its head dimension "
                    "would be read; fine-tuning does not know this family"
                )
            dim = weight.shape[0] // heads
            count = 1 if self.sla.options["projection"] == "shared" else heads
            made = [
                torch.zeros(count, *shape, device=weight.device) for shape in ((dim, dim), (dim,))
            ]
            layers.append((made[0].requires_grad_(), made[1].requires_grad_()))
        self.sla.projections[name] = layers

    def _add_changes(
        self, name: str, transformer: nn.Module, adapter: FamilyAdapter, train: str
    ) -> None:
        own: set[int] = set()
        if train == "all":
            own = {id(p) for p in transformer.parameters()}
        elif train == "attention":
            for each in find_attention(transformer, adapter.attention):
                own |= {id(p) for p in each.module.parameters()}
        self.sla.changes[name] = {}
        for key, parameter in transformer.named_parameters():
            trained = id(parameter) in own
            wanted = parameter.requires_grad
            self._ledger.on_undo(lambda p=parameter, w=wanted: p.requires_grad_(w))  # type: ignore[misc]
            parameter.requires_grad_(trained)
            if trained:
                base = self._bases[name, key] = parameter.data
                self._ledger.on_undo(lambda p=parameter, b=base: setattr(p, "data", b))  # type: ignore[misc]
                self.sla.changes[name][key] = torch.zeros_like(base, dtype=torch.float32)
        self.apply()

    # -- what learns --

    def projections(self) -> list[Tensor]:
        """Tensors of the projections."""
        return [t for layers in self.sla.projections.values() for pair in layers for t in pair]

    def changes(self) -> list[Tensor]:
        """What is added to weights of the transformers."""
        return [t for changes in self.sla.changes.values() for t in changes.values()]

    def gather(self) -> None:
        """Hand gradients of the transformers' weights over to their changes."""
        for name, transformer in self._transformers.items():
            parameters = dict(transformer.named_parameters())
            for key, change in self.sla.changes[name].items():
                gradient, parameters[key].grad = parameters[key].grad, None
                change.grad = None if gradient is None else gradient.float()

    def apply(self, on: bool = True) -> None:
        """Put the changes on the transformers' weights, or take them off."""
        for (name, key), base in self._bases.items():
            parameter = self._transformers[name].get_parameter(key)
            change = self.sla.changes[name][key]
            parameter.data = (base.float() + change).to(base.dtype) if on else base

    @contextmanager
    def dense(self) -> Iterator[None]:
        """The teacher: own weights. Its attention is dense anyway outside `attending`."""
        self.apply(False)
        try:
            yield
        finally:
            self.apply()

    @contextmanager
    def attending(
        self, component: str, step: DenoisingStep, sample: Tensor, named: Mapping[str, Any]
    ) -> Iterator[None]:
        """SLA for one transformer call with these latents, and these arguments by name."""
        runtime = self._runtimes[component]
        runtime.clear()
        runtime.log.records.clear()
        runtime.log.maps.clear()
        runtime.begin(step, sample, named=named)
        try:
            yield
        finally:
            runtime.clear()

    def dense_reasons(self, component: str) -> set[DenseReason] | None:
        """Why every attention call of the last transformer call was dense; None if one was not."""
        causes = [record.cause for record in self._runtimes[component].log.records]
        return None if None in causes else {cause for cause in causes if cause is not None}

    def close(self) -> None:
        """Leave the transformers as they were found."""
        self._ledger.undo()
