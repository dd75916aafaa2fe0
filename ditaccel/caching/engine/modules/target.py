"""The outputs of modules as what is forecast: blocks run around them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from ....core.patching import PatchLedger, patch_of
from ....errors import UnsupportedError
from ....pipelines import submodule
from ..blocks import Block, placeholder
from ..forecast import History
from ..gate import Gate
from ..state import Call, nbytes_of
from ..targets import Target
from .sites import Site, sites_of

Current = Callable[[], Call | None]


class ModuleTarget(Target):
    """The outputs of attention and MLP modules in every block; blocks run around them."""

    unit = "outputs of modules"
    every_block = True

    def __init__(self, blocks: Any, order: int, basis: str, gate: Gate, check: Any) -> None:
        super().__init__(blocks, order, basis, gate, check)
        self._gate = gate

    @staticmethod
    def places(blocks: Sequence[Block], gate: Gate) -> int:
        return sum(
            submodule(b.module, n) is not None and gate.reuses(f"{b.name}.{n}")
            for b in blocks
            for n in b.contract.forecast_modules
        )

    def check_compiled(self) -> None:
        patches = [patch_of(block.module) for block in self.blocks]
        if any(patch is not None and patch.compiled is not None for patch in patches):
            raise UnsupportedError(
                "granularity='module' cannot look into compiled blocks; use "
                "granularity='last_block' or do not compile"
            )

    def runs(self, index: int) -> bool:
        return True

    def remember(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        call.state.last.push(call.place, feature.new_empty(0))  # only its presence counts
        return feature

    def install(self, ledger: PatchLedger, call: Current) -> None:
        self.check_compiled()
        for block in self.blocks:
            contract = block.contract
            if not contract.forecast_modules and not contract.gives_hints:
                raise UnsupportedError(
                    f"granularity='module' has no module to forecast in {contract.container}"
                    "; use granularity='last_block'"
                )
        for site in sites_of(self.blocks):
            around = _around_idle(site, call) if site.feeds else self._around(site, call)
            ledger.intercept(site.module, around)

    def _around(self, site: Site, current: Current) -> Callable[..., Any]:
        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            call = current()
            if call is None:
                return inner(*args, **kwargs)
            visit, state = call.visit(site.name), call.state
            if call.forecasts(site.name, site.kind):
                parts = [h.forecast(call.place, call.order) for h in state.modules[visit]]
                return parts[0] if len(parts) == 1 else tuple(parts)
            output = inner(*args, **kwargs)
            call.ran[site.name] += 1
            if call.forecasting:
                call.cost_run += site.cost  # the step is forecast in part
            state.computed_at[site.kind] = state.computed_at[site.name] = call.step.index
            if not call.early and self._gate.reuses(site.name, call.step):
                self._keep(visit, output, call, current)
            return output

        return around

    def _keep(self, visit: tuple[str, int], output: Any, call: Call, current: Current) -> None:
        """Remember what a module gave on one of its visits in a call."""
        state = call.state
        parts = [output] if isinstance(output, torch.Tensor) else list(output)
        if visit not in state.modules:
            state.snapshot.modules += nbytes_of(*parts)
            self._check()
            if current() is None:
                return  # modules are not remembered any more
            state.modules[visit] = [History(self._order, self._basis) for _ in parts]
        for history, part in zip(state.modules[visit], parts, strict=True):
            history.push(call.place, part)


def _around_idle(site: Site, current: Current) -> Callable[..., Any]:
    """In front of a module that only feeds forecast ones: it rests where all of them are."""

    def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
        call = current()
        if call is None:
            return inner(*args, **kwargs)
        visit, idle = call.visit(site.name), call.state.idle
        if all(call.forecasts(name, kind) for name, kind in site.feeds):
            return idle[visit]
        output = inner(*args, **kwargs)
        call.ran[site.name] += 1
        if call.forecasting:
            call.cost_run += site.cost
        idle[visit] = placeholder(output, idle.get(visit))
        return output

    return around
