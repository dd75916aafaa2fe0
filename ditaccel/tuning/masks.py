"""Step masks as a search sees them: what is computed, with which orders, and one change further."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from random import Random

from ..caching.step_mask import StepMaskConfig
from ..config import AccelerationConfig

Steps = tuple[int, ...]
# Orders that a gap may be forecast with.
ORDERS = (0, 1, 2)
# How far a computed step moves in most proposals, and how many of them that are.
_NEAR, _MOSTLY = 3, 0.7
# How many proposals hold a second change.
_TWICE = 0.25


@dataclass(frozen=True)
class Mask:
    """Computed steps of the first guidance branch and of the others, and the orders between them.

    Attributes:
        steps: computed steps of the first (or only) branch, rising.
        others: computed steps of the other branches, of those in `steps`; None where the output is
            guided inside one call.
        orders: per entry of `steps` the order of the forecasts that follow it; () for order 1.
        other_orders: per entry of `others` the same.
    """

    steps: Steps
    others: Steps | None = None
    orders: Steps = ()
    other_orders: Steps = ()

    @property
    def calls(self) -> int:
        """Transformer calls that it computes."""
        return len(self.steps) + len(self.others or ())

    @property
    def plain(self) -> Mask:
        """The same with orders left out where all of them are 1, so that equal masks compare so."""
        steps = replace(self, orders=()) if set(self.orders) <= {1} else self
        return replace(steps, other_orders=()) if set(self.other_orders) <= {1} else steps

    def config(self, total: int) -> AccelerationConfig:
        """The config that carries it out.

        Args:
            total: steps of the loop.
        """
        return AccelerationConfig(
            cache=StepMaskConfig(
                steps=self.steps,
                total=total,
                order=1,
                correction="auto",
                coordinate="auto",
                guidance="independent" if self.others is None else "difference",
                guidance_steps=self.others,
                orders=self.orders,
                guidance_orders=self.other_orders,
            ),
            label=f"tuned {len(self.steps)} of {total} steps",
        )


@dataclass(frozen=True)
class Moves:
    """Masks that are one change away.

    Args:
        total: steps of the loop.
        forced: steps that stay computed, in all branches.
    """

    total: int
    forced: frozenset[int]

    def proposed(
        self, mask: Mask, kinds: tuple[str, ...], random: Random, seen: Callable[[Mask], bool]
    ) -> Mask | None:
        """A mask one change away, sometimes two, that was not seen; None where hardly any is left.

        Two at a time leave a mask that no single change improves: a step moves, and its gap wants
        another order.

        Args:
            mask: the present one.
            kinds: of the changes, `move`, `trade`, `order`, `drop` or `add`; one of them is drawn.
            random: draws.
            seen: whether a mask was tried before.
        """
        for _ in range(200):
            found = _KINDS[random.choice(kinds)](self, mask, random)
            if found is not None and random.random() < _TWICE:
                found = _KINDS[random.choice(("move", "order"))](self, found, random)
            if found is not None and not seen(found):
                return found
        return None

    # Every change is drawn at random; None where the draw is of no use.

    def move(self, mask: Mask, random: Random) -> Mask | None:
        """Move a computed step of one branch."""
        others = mask.others
        if others is not None and random.random() < 0.35:
            return self._moved(mask, random, others, set(mask.steps), of_others=True)
        return self._moved(mask, random, mask.steps, set(range(self.total)), of_others=False)

    def _moved(
        self, mask: Mask, random: Random, steps: Steps, places: set[int], of_others: bool
    ) -> Mask | None:
        source = self._one(random, set(steps) - self.forced)
        free = places - set(steps)
        if source is not None and random.random() < _MOSTLY:
            free = {place for place in free if abs(place - source) <= _NEAR}
        to = self._one(random, free)
        if source is None or to is None:
            return None
        if of_others:
            return _with(mask, mask.steps, _swapped(steps, source, to))
        others = mask.others
        if others is not None and source in others:
            others = _swapped(others, source, to)
        return _with(mask, _swapped(steps, source, to), others)

    def trade(self, mask: Mask, random: Random) -> Mask | None:
        """Compute one step less of one branch, and one step more of another."""
        if mask.others is None:
            return None
        if random.random() < 0.5:
            lean = self.drop_first(mask, random)
            return None if lean is None else self.add_other(lean, random)
        lean = self.drop_other(mask, random)
        return None if lean is None else self.add_first(lean, random)

    def order(self, mask: Mask, random: Random) -> Mask | None:
        """Forecast a gap with another order."""
        others = mask.others is not None and random.random() < 0.35
        steps = (mask.others or ()) if others else mask.steps
        orders = list((mask.other_orders if others else mask.orders) or (1,) * len(steps))
        ends = (*steps[1:], self.total)
        # forecasts right after the first computed step can only reuse it
        gaps = [i for i in range(1, len(steps)) if ends[i] > steps[i] + 1]
        if not gaps:
            return None
        at = random.choice(gaps)
        orders[at] = random.choice([o for o in ORDERS if o != orders[at] and o <= at] or [1])
        changed = tuple(orders)
        return (
            replace(mask, other_orders=changed) if others else replace(mask, orders=changed)
        ).plain

    def drop(self, mask: Mask, random: Random) -> Mask | None:
        """Compute less: a step of one branch, or of all."""
        kinds = [self.drop_step]
        if mask.others is not None:
            kinds += [self.drop_first, self.drop_other]
        return random.choice(kinds)(mask, random)

    def drop_step(self, mask: Mask, random: Random) -> Mask | None:
        """Compute a step in no branch any more."""
        gone = self._one(random, set(mask.steps) - self.forced)
        if gone is None:
            return None
        others = mask.others and tuple(s for s in mask.others if s != gone)
        return _with(mask, tuple(s for s in mask.steps if s != gone), others)

    def drop_first(self, mask: Mask, random: Random) -> Mask | None:
        """Compute no more a step that only the first branch computes."""
        gone = self._one(random, set(mask.steps) - set(mask.others or ()) - self.forced)
        if gone is None:
            return None
        return _with(mask, tuple(s for s in mask.steps if s != gone), mask.others)

    def drop_other(self, mask: Mask, random: Random) -> Mask | None:
        """Compute a step in the first branch only."""
        gone = self._one(random, set(mask.others or ()) - self.forced)
        if gone is None or mask.others is None:
            return None
        return _with(mask, mask.steps, tuple(s for s in mask.others if s != gone))

    def add_first(self, mask: Mask, random: Random) -> Mask | None:
        """Compute one step more, in the first branch."""
        more = self._one(random, set(range(self.total)) - set(mask.steps))
        return None if more is None else _with(mask, (*mask.steps, more), mask.others)

    def add_other(self, mask: Mask, random: Random) -> Mask | None:
        """Compute a step of the first branch in the others, too."""
        if mask.others is None:
            return None
        more = self._one(random, set(mask.steps) - set(mask.others))
        return None if more is None else _with(mask, mask.steps, (*mask.others, more))

    def add(self, mask: Mask, random: Random) -> Mask | None:
        """Compute one step more, in one branch."""
        if mask.others is not None and random.random() < 0.5:
            return self.add_other(mask, random)
        return self.add_first(mask, random)

    @staticmethod
    def _one(random: Random, places: set[int]) -> int | None:
        return random.choice(sorted(places)) if places else None


_KINDS: dict[str, Callable[[Moves, Mask, Random], Mask | None]] = {
    "move": Moves.move,
    "trade": Moves.trade,
    "order": Moves.order,
    "drop": Moves.drop,
    "add": Moves.add,
}


def _swapped(steps: Steps, source: int, to: int) -> Steps:
    return tuple(sorted({*steps, to} - {source}))


def _with(mask: Mask, steps: Steps, others: Steps | None) -> Mask:
    """A mask with other computed steps; gaps keep the order of where they begin, new ones get 1."""
    steps = tuple(sorted(steps))
    others = None if others is None else tuple(sorted(others))
    return Mask(
        steps,
        others,
        _carried(mask.steps, mask.orders, steps),
        _carried(mask.others or (), mask.other_orders, others or ()),
    ).plain


def _carried(before: Steps, orders: Steps, steps: Steps) -> Steps:
    known = dict(zip(before, orders, strict=False))
    return tuple(known.get(step, 1) for step in steps)
