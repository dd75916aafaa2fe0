"""Base of the gates that decide for each module of a transformer, by the place in the loop."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence

from torch import nn

from ....core.denoising.tracker import DenoisingStep
from ....core.reasons import Reason
from ....errors import ConfigError
from ..blocks import Block
from ..gate import Gate
from ..state import BranchState, Verdict
from .sites import Site, sites_of
from .table import REST, ModuleTable


class ModuleGate(Gate):
    """Each module is computed at steps of its own, which are known before the loop.

    A module never forecasts from an older output than its schedule says: one that was left out when
    it was due (guidance had paused its branch) is computed at the next call.

    Args:
        order: of the forecasts; 0 reuses the newest output.

    Attributes:
        component: name of the transformer.
        modules: what it decides for; empty until it is put on a transformer.
    """

    def __init__(self, order: int = 0) -> None:
        self._order = order
        self.component = ""
        self.modules: tuple[Site, ...] = ()
        self._due: dict[tuple[str, int | None], list[int]] = {}
        self._sites: dict[str, Site] = {}

    @property
    def by_module(self) -> bool:
        return True

    @abstractmethod
    def computes(self, module: Site, index: int, total: int | None) -> bool:
        """Whether a module is computed at a step; at the first one, all are.

        Args:
            module: the module.
            index: of the step.
            total: steps of the loop, None where that is not known.
        """

    @abstractmethod
    def ever_rests(self, module: Site) -> bool:
        """Whether a module rests at any step."""

    def put_on(self, component: str, transformer: nn.Module, blocks: Sequence[Block]) -> None:
        self.component = component
        self.modules = tuple(site for site in sites_of(blocks) if not site.feeds)
        self._sites = {site.name: site for site in self.modules}
        self._due.clear()

    def reuses(self, module: str, step: DenoisingStep | None = None) -> bool:
        site = self._sites[module]
        if step is None:
            return self.ever_rests(site)
        if step.total is None:
            return self.ever_rests(site)
        later = range(step.index + 1, step.total)
        # a higher order also looks back beyond the newest output
        after = later if self._order else later[:1]
        return any(not self.computes(site, index, step.total) for index in after)

    def before(self, step: DenoisingStep, state: BranchState) -> Verdict:
        resting = frozenset(site.name for site in self.modules if self._rests(site, step, state))
        if not resting:
            return Verdict(False, Reason.SCHEDULED)
        detail = f"{len(resting)} of {len(self.modules)} modules rest"
        return Verdict(True, Reason.BETWEEN, detail=detail, modules=resting)

    def _rests(self, site: Site, step: DenoisingStep, state: BranchState) -> bool:
        due = self._newest_due(site, step.index, step.total)
        return due < step.index and state.computed_at.get(site.name, -1) >= due

    def _newest_due(self, site: Site, index: int, total: int | None) -> int:
        """The newest step up to this one at which a module is to be computed."""
        due = self._due.setdefault((site.name, total), [0])
        for at in range(len(due), index + 1):
            due.append(at if self.computes(site, at, total) else due[-1])
        return due[index]


class TableGate(ModuleGate):
    """Carries out a table.

    Args:
        table: who is computed when.
        order: of the forecasts.
    """

    def __init__(self, table: ModuleTable, order: int = 0) -> None:
        super().__init__(order)
        self._table = table
        self._computed: dict[tuple[str, int | None], frozenset[int]] = {}

    @property
    def made_for(self) -> int | None:  # type: ignore[override]
        return None if self._table.resample else self._table.steps

    def put_on(self, component: str, transformer: nn.Module, blocks: Sequence[Block]) -> None:
        super().put_on(component, transformer, blocks)
        self._table.check_modules(component, self.modules)
        self._table.check_model(component, transformer)
        self._computed.clear()

    def check(self, step: DenoisingStep) -> None:
        steps = self._table.steps
        if not self._table.resample and step.total not in (None, steps):
            raise ConfigError(
                f"{self._table.source} was made for {steps} steps, and this run has {step.total}; "
                f"call the pipeline with num_inference_steps={steps}, or move it to the noise "
                "levels of this run with the option resample=true"
            )

    def falls_back(self, step: DenoisingStep) -> str:
        made, here = self._table.timesteps, () if step.schedule is None else step.schedule.values
        if not made or not here or len(made) != len(here):
            return ""
        if all(abs(a - b) <= 1e-3 * max(map(abs, made)) for a, b in zip(made, here, strict=True)):
            return ""
        named = self._table.scheduler or "another scheduler"
        return (
            f"{self._table.source} was made for the timesteps of {named}, which are others than "
            "here; give the pipeline that scheduler, or make a schedule for this one"
        )

    def skips_nothing(self, total: int | None) -> bool:
        return not any(self.ever_rests(site) for site in self.modules)

    def ever_rests(self, module: Site) -> bool:
        return REST in self._table.word(self.component, module.name)

    def computes(self, module: Site, index: int, total: int | None) -> bool:
        key = module.name, total
        if key not in self._computed:
            self._computed[key] = self._table.computed(self.component, *key)
        # a loop that is longer than could be known computes what is beyond the table
        return index in self._computed[key] or index >= (total or self._table.steps)
