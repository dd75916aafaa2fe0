"""What is known before a run: schedules published for the checkpoint, and what few steps gain."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import groupby

from .. import config as configs
from ..caching.engine.few_steps import LEAST, MOST
from ..caching.engine.policy import few_steps_line, policy_of
from ..pipelines import AUTO_STEPS, FamilyAdapter
from ..pipelines.schedules import PublishedSchedule, checkpoints, schedules_for
from ..sessions.step_count import steps_of_share


@dataclass(frozen=True)
class PublishedSource:
    """The schedules of one source for one checkpoint.

    Attributes:
        names: of the presets, such as `published:budcache-13`.
        steps: of the loop that they are for.
        payload: what a skipped step reuses.
        source: paper or address.
        licence: of the source.
        note: what is different here, empty where nothing is.
    """

    names: list[str]
    steps: int
    payload: str
    source: str
    licence: str
    note: str = ""

    def __str__(self) -> str:
        note = f"; {self.note}" if self.note else ""
        payload = self.payload.replace("_", " ")
        return (
            f"{', '.join(self.names)}: of {self.steps} steps, payload {payload}{note} "
            f"({self.source}; {self.licence})"
        )


def few_steps_of(adapter: FamilyAdapter, steps: int | None) -> list[str]:
    """What each preset gains in a loop of few steps, one line each; none for other loops."""
    if steps is None or not LEAST <= steps <= MOST:
        return []
    lines = []
    for name in adapter.presets:
        setting = configs.preset(name, adapter)
        if setting.cache is not None:
            line = few_steps_line(policy_of(setting.cache), steps)
            lines.append(f"{name}: {line or f'dense or nearly so in {steps} steps'}")
    return lines


def auto_steps_of(adapter: FamilyAdapter, steps: int | None) -> list[str]:
    """What `steps="auto"` runs with each preset that names a share of the steps, one line each."""
    lines = []
    for name, options in adapter.presets.items():
        share = options.get(AUTO_STEPS)
        if share is None:
            continue
        if steps is None:
            count = f"{share:.0%} of the steps"
        elif steps_of_share(share, steps) < steps:
            count = f"{steps_of_share(share, steps)} of {steps} steps"
        else:
            lines.append(f"{name}: all {steps} of these few steps")
            continue
        lines.append(f"{name}: {count}, better than all of them with a more daring cache")
    return lines


def published_for(adapter: FamilyAdapter) -> tuple[str, list[PublishedSource]]:
    """Name of the checkpoint that an adapter knows, and what was published for it.

    Args:
        adapter: of a pipeline (`with_checkpoint`).

    Returns:
        An empty name and no schedules where the pipeline holds none of the known checkpoints.
    """
    if not adapter.checkpoint:
        return "", []

    def source(each: PublishedSchedule) -> tuple[str, int, str]:
        return each.source, each.steps, each.note

    found = []
    for _, group in groupby(schedules_for(adapter.checkpoint).values(), source):
        several = list(group)
        first = several[0]
        found.append(
            PublishedSource(
                [f"published:{each.name}" for each in several],
                first.steps,
                first.payload,
                first.source,
                first.licence,
                first.note,
            )
        )
    return checkpoints()[adapter.checkpoint].title, found
