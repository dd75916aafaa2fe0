"""HarmoniCa's router: what is trained is a logit per step and module, along generations."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...caching.engine.blocks import find_blocks
from ...caching.engine.modules.sites import Site, sites_of
from ...caching.harmonica import THRESHOLD, HarmoniCaConfig, Router, even_steps, threshold_for
from ...config import require
from ...core.denoising.tracker import DenoisingStep
from ...core.outputs import tensors_of
from ...core.patching import PatchLedger, is_compiled
from ...core.weight_changes import fingerprint
from ...errors import UnsupportedError
from ..student import Backward, Generation, Group, Student, Subject, student
from ..teacher import Call, Teacher

_LIMIT = 5.0  # of logits, as published
# How fast the cost of computing a module follows the share that is computed (ours).
_FOLLOWS = 0.1
_MIX_SEED = 1 << 41  # of generations that weigh the steps; training never draws them

Inner = Callable[[], Any]


@dataclass
class _Mix:
    """A transformer call whose modules give part of what they gave before.

    Attributes:
        weights: of what is new, per module `(modules,)`.
        store: (module, visit) -> what it gave when it was last computed.
        visits: calls of each module so far.
    """

    weights: Tensor
    store: dict[tuple[int, int], list[Tensor]]
    visits: Counter[int] = field(default_factory=Counter)

    def output(self, column: int, output: Any) -> Any:
        """What a module gives, in place of what it has computed."""
        visit = column, self.visits[column]
        self.visits[column] += 1
        weight = self.weights[column]
        new = [output] if isinstance(output, Tensor) else list(output)
        kept = self.store.get(visit)
        if kept is None or float(weight.detach()) > THRESHOLD:
            self.store[visit] = [part.detach() for part in new]
        if kept is None:
            return output
        mixed = [
            part.lerp(old, (1 - weight).to(part.dtype)) for part, old in zip(new, kept, strict=True)
        ]
        return mixed[0] if isinstance(output, Tensor) else tuple(mixed)


# What modules of one generation gave, per component and guidance branch.
_Stores = dict[tuple[str, str], dict[tuple[int, int], list[Tensor]]]


@student(HarmoniCaConfig)
class HarmoniCaStudent(Student):
    """Trains a router by the error of transformer calls under it, and by what computing costs.

    Step-wise denoising training: a generation runs with each module's output mixed of what it last
    gave and what is new; at every step the dense transformer, at the same latents, is the teacher.
    """

    trains = ("router",)
    lessons = "generations"

    def __init__(self, subject: Subject, config: HarmoniCaConfig, train: str) -> None:
        super().__init__(subject, config, train)
        require(config.schedule is None, "training starts from nothing; leave schedule out")
        self._ledger = PatchLedger(owner=self)
        self._mix: _Mix | None = None
        self._sites: dict[str, list[Site]] = {}
        self._costs: dict[str, Tensor] = {}
        self._updates = 0
        self._cost = config.cost
        self._first: tuple[Any, int] | None = None
        self.router = Router({}, method=config.method)
        for name, transformer in subject.transformers.items():
            if any(is_compiled(module) for module in transformer.modules()):
                raise UnsupportedError(f"{name} is compiled; fine-tune before compiling")
            found = sites_of(find_blocks(transformer, subject.family.blocks))
            sites = self._sites[name] = [site for site in found if not site.feeds]
            if not sites:
                raise UnsupportedError(f"{name} has no module that can rest; nothing is to train")
            costs = torch.tensor([site.cost for site in sites])
            self._costs[name] = costs / costs.mean()
            self.router.fingerprints[name] = fingerprint(transformer)
            for column, site in enumerate(sites):
                self._ledger.intercept(site.module, self._around(column))
            for parameter in transformer.parameters():
                wanted = parameter.requires_grad
                self._ledger.on_undo(lambda p=parameter, w=wanted: p.requires_grad_(w))  # type: ignore[misc]
                parameter.requires_grad_(False)

    def _around(self, column: int) -> Callable[..., Any]:
        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            return output if self._mix is None else self._mix.output(column, output)

        return around

    # -- what is trained --

    def check(self, teacher: Teacher, item: Any, seed: int) -> None:
        """See `Student`; the first call also shows how many steps there are."""
        step = teacher.first_call(item, seed).step
        require(
            step.total is not None and step.total > 1,
            "the number of steps of the loop is not known, or it is 1, so there is no schedule to "
            "train; give num_inference_steps",
        )
        assert step.total is not None
        self._first = item, seed
        generator = torch.Generator().manual_seed(seed)
        for name, sites in self._sites.items():
            made = torch.randn(step.total, len(sites), generator=generator)
            device = next(self.subject.transformers[name].parameters()).device
            self._costs[name] = self._costs[name].to(device)
            self.router.logits[name] = made.to(device).requires_grad_()
        self._lambda, self._weighed = _first_weights(step), -1
        # rows in which all is computed, whatever training would have
        self._fixed = slice(0, None if self.config.way == "pairs" else 1, 2)
        self.router.options = {
            "steps": step.total,
            "timesteps": [] if step.schedule is None else list(step.schedule.values),
            "scheduler": type(getattr(self.subject.pipe, "scheduler", None)).__name__,
            "modules": {name: [s.name for s in sites] for name, sites in self._sites.items()},
            "way": self.config.way,
            "share": self.config.share,
            "cost": self.config.cost,
            "proxy_every": self.config.proxy_every,
            "threshold": THRESHOLD,
        }
        self.apply()

    def groups(self) -> list[Group]:
        """See `Student`."""
        return [Group(list(self.router.logits.values()))]

    def apply(self) -> None:
        """See `Student`: logits stay within bounds, and all is computed at the first step."""
        with torch.no_grad():
            for logits in self.router.logits.values():
                logits.clamp_(-_LIMIT, _LIMIT)
                logits[self._fixed] = _LIMIT

    def gather(self) -> None:
        """See `Student`: what is computed costs, and the cost follows the share."""
        gradients = {name: logits.grad for name, logits in self.router.logits.items()}
        if all(g is not None for g in gradients.values()):
            if self._cost is None:
                self._cost = self._first_cost(gradients)
            for name, logits in self.router.logits.items():
                chances = logits.detach().sigmoid()
                # of the cost times the sum of all chances
                logits.grad.add_(self._cost * self._costs[name] * chances * (1 - chances))  # type: ignore[union-attr]
                logits.grad[self._fixed] = 0.0  # type: ignore[index]
            if self.config.cost is None:
                self._cost *= math.exp(_FOLLOWS * (self._share() - self.config.share))
        self._updates += 1

    def _first_cost(self, gradients: Mapping[str, Tensor | None]) -> float:
        """The cost under which a share of the modules is worth computing, as the first update has
        them."""
        worth = []
        for name, gradient in gradients.items():
            chances = self.router.logits[name].detach().sigmoid()
            assert gradient is not None
            each = -gradient / (chances * (1 - chances)) / self._costs[name]
            learnt = torch.ones(len(each), dtype=torch.bool, device=each.device)
            learnt[self._fixed] = False
            worth.append(each[learnt].flatten())
        return float(torch.cat(worth).clamp_min(0).quantile(1 - self.config.share)) + 1e-20

    def _share(self) -> float:
        """Share of the modules' computation that is left at the published threshold."""
        computed = self.router.computed(THRESHOLD)
        spent = sum(float((each * self._costs[n]).sum()) for n, each in computed.items())
        return spent / sum(float(self._costs[n].sum()) * len(e) for n, e in computed.items())

    # -- what it learns from --

    @contextmanager
    def _mixing(self, call: Call, weights: Tensor, stores: _Stores) -> Iterator[None]:
        """Modules of one transformer call give part of what they gave before."""
        self._mix = _Mix(weights, stores.setdefault((call.component, call.step.branch), {}))
        try:
            yield
        finally:
            self._mix = None

    def learn(self, lesson: Generation, teacher: Teacher, backward: Backward) -> None:
        """See `Student`."""
        every = self.config.proxy_every
        due = every > 0 and self._updates % every == 0 and self._weighed != self._updates
        if due and self.config.way == "steps":
            self._weigh_steps(teacher)
            self._weighed = self._updates
        stores: _Stores = {}
        learns = self._own_step if self.config.way == "steps" else self._pair
        teacher.follow(lesson.item, lesson.seed, lambda c, i: learns(c, i, stores, backward))

    def _own_step(self, call: Call, inner: Inner, stores: _Stores, backward: Backward) -> Any:
        """One step of a generation that the router makes."""
        target, index = tensors_of(inner())[0], call.step.index
        with torch.enable_grad():
            weights = self.router.logits[call.component][index].sigmoid()
            with self._mixing(call, weights, stores):
                output = inner()
            if index > 0:
                backward(self._lambda[index] * _squared(tensors_of(output)[0], target))
        return output

    def _pair(self, call: Call, inner: Inner, stores: _Stores, backward: Backward) -> Any:
        """A step of a dense generation: even ones fill the store, odd ones learn from it."""
        index, logits = call.step.index, self.router.logits[call.component]
        if index % 2 == 0:
            with self._mixing(call, torch.ones_like(logits[0]), stores):
                return inner()
        output = inner()
        with torch.enable_grad():
            with self._mixing(call, logits[index].sigmoid(), dict(stores)):
                found = inner()
            backward(_squared(tensors_of(found)[0], tensors_of(output)[0]))
        return output

    def _weigh_steps(self, teacher: Teacher) -> None:
        """Image-error proxy: what routing one step more does to the end of a generation.

        Steps are routed from the noisy end on, one more each time, and the change of the end counts
        for the step that came to be routed.
        """
        assert self._first is not None
        item, seed = self._first[0], _MIX_SEED + self._first[1] + self._updates
        before = self._end(teacher, item, seed, 1)
        weights = [0.0]
        for routed in range(2, len(self._lambda) + 1):
            end = self._end(teacher, item, seed, routed)
            weights.append(float((end - before).square().mean()))
            before = end
        # where the cost follows the share, only their proportions count
        self._lambda = weights if self.config.cost is not None else _scaled(weights)

    def _end(self, teacher: Teacher, item: Any, seed: int, routed: int) -> Tensor:
        """What a generation ends with when its first steps are routed, and the others dense."""
        stores: _Stores = {}

        def around(call: Call, inner: Inner) -> Any:
            if call.step.index >= routed:
                return inner()
            weights = self.router.logits[call.component][call.step.index].detach().sigmoid()
            with self._mixing(call, weights, stores):
                return inner()

        made = teacher.follow(item, seed, around)
        return torch.as_tensor(made).detach().float().cpu()

    def error(self, lessons: Sequence[Generation], teacher: Teacher) -> float:
        """See `Student`: of generations under the schedule; before training an even one."""
        sums = [0.0, 0.0]
        computed = self._schedule()
        for lesson in lessons:
            stores: _Stores = {}

            def around(call: Call, inner: Inner, stores: _Stores = stores) -> Any:
                target = tensors_of(inner())[0].float()
                weights = computed[call.component][call.step.index].float()
                with self._mixing(call, weights, stores):
                    output = inner()
                sums[0] += float((tensors_of(output)[0].float() - target).square().sum())
                sums[1] += float(target.square().sum())
                return output

            teacher.follow(lesson.item, lesson.seed, around)
        return math.sqrt(sums[0] / sums[1])

    def _schedule(self) -> dict[str, Tensor]:
        """Component -> which modules are computed at which steps, as it would be saved now."""
        if self._updates:
            return self.router.computed(self._threshold())
        even = even_steps(self.config.share, self.router.options["steps"])
        found = {name: torch.zeros_like(each) for name, each in self.router.logits.items()}
        for each in found.values():
            each[list(even)] = 1.0
        return {name: each > 0 for name, each in found.items()}

    def _threshold(self) -> float:
        if self.config.cost is not None:
            return THRESHOLD
        found = threshold_for(self.router.logits, self._costs, self.config.share)
        # the first of each pair is computed, if that leaves a little more than the share
        return min(found, 0.99) if self.config.way == "pairs" else found

    def output(self, call: Any, teacher: Teacher) -> Tensor:
        """See `Student`; generations are its lessons, so nobody asks."""
        return teacher.output(call)

    # -- what is kept --

    def described(self) -> dict[str, Any]:
        """See `Student`."""
        return {"options": self.router.options, "models": self.router.fingerprints}

    def save(self, path: Path, notes: Mapping[str, Any]) -> int:
        """See `Student`."""
        self.router.options = {**self.router.options, "threshold": self._threshold()}
        self.router.notes = {**notes, "step_weights": self._lambda}
        return self.router.save(path)

    def state(self) -> dict[str, Any]:
        """See `Student`."""
        return {"updates": self._updates, "cost": self._cost, "step_weights": self._lambda}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """See `Student`."""
        self._updates, self._cost = state["updates"], state["cost"]
        self._lambda = list(state["step_weights"])

    def close(self) -> None:
        """See `Student`."""
        self._ledger.undo()


def _first_weights(step: DenoisingStep) -> list[float]:
    """What errors of the steps leave in the last latents, squared: the proxy to first order."""
    assert step.total is not None
    tangent = step.tangent
    if tangent is None or tangent.calls != step.total:
        return [1.0] * step.total
    return _scaled([tangent.end(index) ** 2 for index in range(step.total)])


def _scaled(weights: Sequence[float]) -> list[float]:
    """Weights with a mean of 1."""
    scale = len(weights) / max(sum(weights), 1e-30)
    return [weight * scale for weight in weights]


def _squared(output: Tensor, target: Tensor) -> Tensor:
    return (output.float() - target.float()).square().mean()
