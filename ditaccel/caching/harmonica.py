"""HarmoniCa (arXiv 2410.01723): a trained router says which module is computed at which step."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import torch
from torch import Tensor

from ..config import CacheConfig, Example, method, require
from ..io import given
from ..io.adapter import Adapter
from .engine.gate import StepRules
from .engine.modules.gate import ModuleGate, TableGate
from .engine.modules.sites import Site
from .engine.modules.table import COMPUTED, REST, ModuleTable
from .engine.options import Bytes, MemoryBudget, check_options
from .engine.policy import CachePolicy

# Of the sigmoid of a logit: below it, a module rests (the authors' code).
THRESHOLD = 0.1
_TRAINING = ("share", "cost", "way", "proxy_every")


@dataclass(eq=False)
class Router(Adapter):
    """A logit per step and module; trained by `finetune` and saved as a small file.

    Attributes:
        logits: component -> `(steps, modules)`. Its `options` are what it was trained for: `steps`,
            `timesteps`, `scheduler`, the names of the `modules` of each component, and the
            `threshold` that leaves the share that was asked for.
    """

    logits: dict[str, Tensor] = field(default_factory=dict)

    def parts(self, component: str) -> dict[str, Tensor]:
        """See `Adapter`."""
        return {"router": self.logits[component]}

    def take_parts(self, component: str, tensors: Mapping[str, Tensor]) -> None:
        """See `Adapter`."""
        names = self.options["modules"].get(component, ())
        found = tensors.get("router")
        shape = (self.options["steps"], len(names))
        require(
            found is not None and tuple(found.shape) == shape,
            f"{self.source or 'the file'} holds no router of {shape[0]} steps and {shape[1]} "
            f"modules for {component}; train it again",
        )
        assert found is not None
        self.logits[component] = found

    def computed(self, threshold: float | None = None) -> dict[str, Tensor]:
        """Component -> which modules are computed at which steps, `(steps, modules)`."""
        limit = self.options["threshold"] if threshold is None else threshold
        found = {name: logits.sigmoid() > limit for name, logits in self.logits.items()}
        for each in found.values():
            each[0] = True
        return found

    def table(self, threshold: float | None = None) -> ModuleTable:
        """The schedule that it comes to.

        Args:
            threshold: modules rest where the sigmoid of their logit is at most this; None for the
                one that it was trained for.
        """
        rules = {}
        for component, computed in self.computed(threshold).items():
            names = self.options["modules"][component]
            for name, column in zip(names, computed.T.tolist(), strict=True):
                word = "".join(COMPUTED if sign else REST for sign in column)
                rules[f"{component}.{name}"] = word
        return ModuleTable(
            rules,
            models=self.fingerprints,
            scheduler=self.options["scheduler"],
            timesteps=tuple(self.options["timesteps"]),
            source=self.source,
        )


class EvenGate(ModuleGate):
    """All modules are computed at a share of the steps, evenly spaced.

    Args:
        share: of the steps.
    """

    def __init__(self, share: float) -> None:
        super().__init__()
        self._share = share

    def skips_nothing(self, total: int | None) -> bool:
        return self._share == 1.0

    def ever_rests(self, module: Site) -> bool:
        return self._share < 1.0

    def computes(self, module: Site, index: int, total: int | None) -> bool:
        # of a loop of unknown length, the beginning is as that of a long one
        return index in even_steps(self._share, total or 1000)


def even_steps(share: float, total: int) -> Sequence[int]:
    """Evenly spaced steps from the first one on, at most a share of all."""
    count = max(1, int(share * total + 1e-9))
    return sorted({round(k * total / count) for k in range(count)})


@method("harmonica", paper="2410.01723")
@dataclass(frozen=True, kw_only=True)
class HarmoniCaConfig(CacheConfig):
    """A trained router says at which steps each attention and MLP is computed.

    The router is a logit per step and module, without any input. Training (`ditaccel.finetune`)
    follows generations that the router itself makes, so that it learns under the errors that it
    causes; what is left is a schedule that runs without a gate. Use it where one model makes many
    pictures at one number of steps, after thousands of training generations, and compare it with
    the even schedule of `fora`.

    Args:
        schedule: file that training wrote. None: an untrained schedule, in which all modules rest
            at the same, evenly spaced steps; only to compare with.
        threshold: a module rests where the sigmoid of its logit is at most this, 0 to 1; raising it
            is faster and less exact. None: that of the file, which leaves the share it was trained
            for. Published: 0.1.
        resample: in a loop of another number of steps, compute each module at the noise levels
            where the schedule does; else such a loop is refused.
        memory_budget: bytes, or text like `2GB`, that the cache may take; None for no limit.
        share: for training, and without a file: share of the modules' computation that is left,
            weighted by parameters, above 0 to 1.
        cost: for training: what computing a module costs in the loss, per step and module; then
            `share` is not asked for, and the threshold is 0.1. None: what leaves the share (ours).
            Published: 7e-8, for DiT-XL/2 at 10 steps and 256 pixels.
        way: for training: along the router's own generations (`steps`, HarmoniCa's), or at every
            second step of dense ones, right behind a step that is computed in full (`pairs`, in the
            manner of Learning-to-Cache, arXiv 2406.01733); that can leave no share below a half.
        proxy_every: for training: updates after which the weight of each step is measured again, as
            the change of the final picture when the steps up to it are routed (image-error proxy);
            0 weighs them by what an error of their outputs leaves in the last latents, which needs
            no further generations (ours).
    """

    schedule: str | os.PathLike[str] | None = None
    threshold: float | None = None
    resample: bool = False
    memory_budget: Bytes | None = None
    share: float = 0.5
    cost: float | None = None
    way: Literal["steps", "pairs"] = "steps"
    proxy_every: int = 500

    def __post_init__(self) -> None:
        check_options(self)
        require(0.0 < self.share <= 1.0, f"share is {self.share}; it is above 0, and at most 1")
        require(
            self.threshold is None or 0.0 <= self.threshold <= 1.0,
            f"threshold is {self.threshold}; it is from 0 (computes all) to 1",
        )
        require(
            self.schedule is not None or (self.threshold is None and not self.resample),
            "threshold and resample belong to a trained schedule; give its file as schedule",
        )
        default = {field.name: field.default for field in dataclasses.fields(self)}
        trained = [name for name in _TRAINING if getattr(self, name) != default[name]]
        require(
            self.schedule is None or not trained,
            f"{' and '.join(trained)} change nothing of a trained schedule; give threshold, or "
            "train another one",
        )
        require(
            self.way == "steps" or self.share >= 0.5,
            f"way='pairs' computes every other step in full, so no share below 0.5 can be left; "
            f"share is {self.share}: use way='steps'",
        )
        require(self.cost is None or self.cost >= 0, f"cost is {self.cost}; it must be 0 or more")
        require(self.proxy_every >= 0, f"proxy_every is {self.proxy_every}; it must be 0 or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(share=1.0), cls(share=0.4)),)

    def policy(self) -> CachePolicy:
        """What the hooks carry out.

        Raises:
            UsageError: the file of `schedule` cannot be read.
            ConfigError: it holds something else.
        """
        gate: ModuleGate = EvenGate(self.share)
        if self.schedule is not None:
            file = given.path(self.schedule)
            table = Router.load(file, self.method).table(self.threshold)
            gate = TableGate(replace(table, resample=self.resample))
        return CachePolicy(
            gate=gate,
            rules=StepRules(exact=True),
            order=0,
            granularity="module",
            memory_budget=MemoryBudget.parse(self.memory_budget),
        )


def threshold_for(logits: Mapping[str, Tensor], costs: Mapping[str, Tensor], share: float) -> float:
    """The lowest threshold that computes at most a share of all, weighted by cost.

    Args:
        logits: component -> `(steps, modules)`.
        costs: component -> `(modules,)`.
        share: the first step included, where all is computed.
    """
    values, weights = [], []
    for name, each in logits.items():
        values.append(each[1:].detach().sigmoid().flatten())
        weights.append(costs[name].expand_as(each[1:]).flatten())
    chances, cost = torch.cat(values).double(), torch.cat(weights).double()
    first = sum(float(costs[name].sum()) for name in logits)
    order = chances.argsort(descending=True)
    spent = first + cost[order].cumsum(0)
    kept = int((spent <= share * (first + float(cost.sum())) * (1 + 1e-9)).sum())
    # equal chances are computed together, or not at all
    return float(chances[order[kept]]) if kept < len(order) else 0.0
