"""How many steps a pipeline's calls run, where the config may choose it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from typing import Any

from ..caching.engine.policy import policy_of
from ..config import AccelerationConfig
from ..core.entrance import stand_before_calls
from ..core.patching import PatchLedger
from ..errors import UnsupportedError, UsageError
from ..reports.step_choice import StepChoice, Why

_ARGUMENT = "num_inference_steps"
# Arguments with which a call gives its own noise levels.
_LEVELS = ("sigmas", "timesteps")
# No share takes a call below so many steps: of few steps, each is worth more than what a cache
# leaves out (`ditaccel eval samples/models/shapes-wan --steps 20 --fewer 13 --config balanced
# --config steps:13+balanced`).
LEAST = 20


class StepCount:
    """Gives each call of one pipeline the number of steps that the config chooses.

    Args:
        pipe: the pipeline.
        config: what is done, options of the family filled in; its `steps` are not `keep`.
        book: told of each choice.

    Raises:
        UnsupportedError: the config names a number of steps, and the pipeline's call takes none.
    """

    def __init__(
        self, pipe: Any, config: AccelerationConfig, book: Callable[[StepChoice], None]
    ) -> None:
        self._steps, self._book = config.steps, book
        self._made_for = None if config.cache is None else policy_of(config.cache).gate.made_for
        self._defaults = _defaults_of(pipe)
        self._names = tuple(inspect.signature(type(pipe).__call__).parameters)[1:]
        if _ARGUMENT in self._defaults:
            return
        if isinstance(config.steps, int):
            raise UnsupportedError(
                f"the call of {type(pipe).__name__} takes no {_ARGUMENT}, so steps={config.steps} "
                "cannot be carried out; leave steps out"
            )
        book(StepChoice(None, None, Why.NOT_TAKEN))

    def stand(self, pipe: Any, ledger: PatchLedger) -> None:
        """Take the place in front of the pipeline's calls."""
        if _ARGUMENT in self._defaults:
            stand_before_calls(pipe, self.change, ledger)

    def change(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """The arguments of a call with the number of steps that is chosen.

        Raises:
            UsageError: the config names a number of steps, and the call gives its own noise levels.
        """
        given = {**self._defaults, **dict(zip(self._names, args, strict=False)), **kwargs}
        # a modular pipeline may be handed a state, with what it read
        read = getattr(given.get("state"), "values", None)
        if isinstance(read, dict):
            given = {**given, **read, **kwargs}
        choice = self._choice(given)
        self._book(choice)
        if choice.run is None:
            return args, kwargs
        if _ARGUMENT in self._names[: len(args)]:
            place = self._names.index(_ARGUMENT)
            return (*args[:place], choice.run, *args[place + 1 :]), kwargs
        return args, {**kwargs, _ARGUMENT: choice.run}

    def _choice(self, given: Mapping[str, Any]) -> StepChoice:
        asked = given.get(_ARGUMENT)
        asked = asked if isinstance(asked, int) and asked > 0 else None
        own = next((name for name in _LEVELS if given.get(name) is not None), None)
        if isinstance(self._steps, int):
            if own is not None:
                raise UsageError(
                    f"this call gives its own {own}, whose number steps={self._steps} would "
                    f"change; leave {own} out of the call, or accelerate with steps='keep'"
                )
            if asked is not None and asked <= self._steps:
                return StepChoice(asked, None, Why.FEWER)
            return StepChoice(asked, self._steps, Why.NUMBER)
        if asked is None or own is not None:
            return StepChoice(asked, None, Why.NOT_ASKED if own is None else Why.OWN_LEVELS)
        if self._made_for is not None:
            return StepChoice(asked, None, Why.MADE_FOR)
        if isinstance(self._steps, str):
            return StepChoice(asked, None, Why.NO_SHARE)
        strength = given.get("strength")  # of an image-to-image run, only that part is made
        part = strength if isinstance(strength, (int, float)) and 0 < strength <= 1 else 1.0
        run = steps_of_share(self._steps, asked, part)
        if run < asked:
            return StepChoice(asked, run, Why.SHARE)
        return StepChoice(asked, None, Why.ALL if round(self._steps * asked) >= asked else Why.FEW)


def steps_of_share(share: float, asked: int, part: float = 1.0) -> int:
    """How many steps a share of them is: `LEAST` at least, or as many as are asked for.

    Args:
        share: of the steps.
        asked: steps that the call asks for.
        part: share of them that the call really makes (`strength` of image-to-image).
    """
    return min(max(round(share * asked), math.ceil(LEAST / part)), asked)


def _defaults_of(pipe: Any) -> dict[str, Any]:
    """What a pipeline's call takes for arguments that are not given (None where it needs them)."""
    empty = inspect.Parameter.empty
    found = {
        name: None if parameter.default is empty else parameter.default
        for name, parameter in inspect.signature(type(pipe).__call__).parameters.items()
    }
    # a modular pipeline's call takes any: its blocks have the names
    inputs = getattr(getattr(pipe, "blocks", None), "inputs", None)
    if isinstance(inputs, list):
        found |= {each.name: each.default for each in inputs if getattr(each, "name", None)}
    return found
