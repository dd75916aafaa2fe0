"""What tests ask a pipeline: what was computed, what a patch left on it, what a gate does to it."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from tiny import generate

import ditaccel
from ditaccel.caching.engine.gate import Gate
from ditaccel.caching.engine.policy import CachePolicy
from ditaccel.config import CacheConfig


def traces(pipe: Any) -> Any:
    """Everything a patch could leave on a pipeline's modules."""
    found: dict[tuple[str, str], Any] = {}
    for name, part in pipe.components.items():
        if isinstance(part, torch.nn.Module):
            for path, module in part.named_modules():
                found[name, path] = (
                    sorted(module.__dict__),
                    module.__dict__.get("forward"),
                    len(module._forward_hooks) + len(module._forward_pre_hooks),
                    sorted(type(module).__dict__),
                )
    return found, sorted(pipe.__dict__)


def computed(pipe: Any, branch: str | None = None) -> list[int]:
    """Steps that the last generation computed, in one guidance branch or in any."""
    calls = ditaccel.report(pipe).last_generation().calls
    return [c.step for c in calls if c.action == "compute" and branch in (None, c.branch)]


class Watched:
    """What plain forward hooks see of modules: copies of what goes in or comes out."""

    def __init__(self) -> None:
        self.seen: dict[str, list[Any]] = defaultdict(list)
        self._handles: list[Any] = []

    def inputs(self, name: str, module: torch.nn.Module, argument: str) -> None:
        def keep(module: Any, args: Any, kwargs: Any) -> None:
            value = kwargs[argument] if argument in kwargs else args[0]
            self.seen[name].append(value.clone())

        self._handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))

    def outputs(self, name: str, module: torch.nn.Module, index: int = 0) -> None:
        def keep(module: Any, args: Any, output: Any) -> None:
            value = output if isinstance(output, torch.Tensor) else output[index]
            self.seen[name].append(value.clone())

        self._handles.append(module.register_forward_hook(keep))

    def remove(self) -> None:
        for handle in self._handles:
            handle.remove()


@dataclass(frozen=True, kw_only=True)
class ThrownAway(CacheConfig):
    """A policy as the config of a method that no registry knows."""

    method = "thrown_away"
    made: Any = None

    def policy(self) -> CachePolicy:
        return self.made


def on(gate: Gate, **options: Any) -> ThrownAway:
    """The config of a gate."""
    return ThrownAway(made=CachePolicy(gate=gate, **options))


def unchanged(pipe: Any, call: Any, dense: torch.Tensor, clean: Any, config: Any) -> None:
    """A run with this config is bit-identical, and nothing is left of it."""
    with ditaccel.accelerated(pipe, cache=config):
        assert torch.equal(generate(pipe, call), dense)
    assert traces(pipe) == clean
    assert torch.equal(generate(pipe, call), dense)
