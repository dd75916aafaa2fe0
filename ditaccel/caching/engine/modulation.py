"""The modulated input of the first block: normalised, scaled and shifted by the timestep.

Where the block has an adaptive norm, that is asked before the block runs, with what the block is
given; which of the block's arguments it takes shows on the first call that runs through it. Where
the block has a plain norm and a table of its own (PixArt's adaLN-single), the same is computed from
the block's arguments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...core.calls import argument_names
from ...core.patching import PatchLedger, patch_of
from ...errors import UnsupportedError
from ...pipelines import ScaleShift, submodule
from .blocks import Block
from .state import Call

Given = tuple[tuple[Any, ...], Mapping[str, Any]]


def modulation_of(block: Block) -> Modulation:
    """How a first block modulates its input.

    Raises:
        UnsupportedError: it does not, as far as is known.
    """
    scaled = isinstance(block.contract.modulation, ScaleShift)
    return ScaledNorm(block) if scaled else AdaptiveNorm(block)


class Modulation(ABC):
    """How a first block scales and shifts what goes into its attention."""

    @abstractmethod
    def install(self, ledger: PatchLedger, current: Callable[[], Call | None]) -> None:
        """Watch it, where it has to be watched.

        Args:
            ledger: takes note of the patch.
            current: the call in progress, None for none.
        """

    @abstractmethod
    def check_compiled(self) -> None:
        """Refuse what compiling would hide."""

    @abstractmethod
    def ask(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Put the modulated input into the state of a call.

        Args:
            call: about to run the first block.
            args: of the block.
            kwargs: of the block.

        Raises:
            UnsupportedError: the block does not do what its contract says.
        """


class ScaledNorm(Modulation):
    """A plain norm, whose result the block scales and shifts by rows that it is given.

    Args:
        block: the first main block.
    """

    def __init__(self, block: Block) -> None:
        rule = block.contract.modulation
        assert isinstance(rule, ScaleShift)
        self._block, self._timestep = block, rule.timestep
        self._norm = submodule(block.module, rule.norm)
        self._table = getattr(block.module, rule.table) if rule.table else None
        self._names = argument_names(block.module)

    def install(self, ledger: PatchLedger, current: Callable[[], Call | None]) -> None:
        """Nothing is watched: what the block is given suffices."""

    def check_compiled(self) -> None:
        """Compiled blocks are no obstacle: the norm is called from outside their graph."""

    def ask(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Make the modulated input from what the block is given."""
        given = {**dict(zip(self._names, args, strict=False)), **kwargs}
        hidden, timestep = given[self._block.contract.hidden], given[self._timestep]
        if self._table is None:
            rows = timestep[:, None]
        else:
            table = self._table.flatten(0, -2)
            if timestep.ndim == 4 and timestep.shape[2] != len(table):
                timestep = timestep.transpose(1, 2)
            rows = table + timestep.reshape(len(timestep), -1, *table.shape)
        normed = self._norm(hidden)
        call.state.modulated = (normed * (1 + rows[:, :, 1]) + rows[:, :, 0]).detach()


class AdaptiveNorm(Modulation):
    """The adaptive norm of a first block.

    Args:
        block: the first main block.

    Raises:
        UnsupportedError: it has no such norm.
    """

    def __init__(self, block: Block) -> None:
        path = block.contract.modulation
        assert isinstance(path, str)
        self._block, self._contract = block.module, block.contract
        self._norm = submodule(block.module, path)
        self._name = f"{type(block.module).__name__}.{path}"
        # a norm that takes nothing besides the hidden state is modulated elsewhere
        if self._norm is None or len(argument_names(self._norm)) < 2:
            raise UnsupportedError(
                f"this method needs the modulated input of the first block, and {self._name} is "
                "not an adaptive norm; use another caching method"
            )
        self._sources: tuple[list[Any], dict[str, Any]] | None = None
        self._given: Given | None = None

    def install(self, ledger: PatchLedger, current: Callable[[], Call | None]) -> None:
        """Watch the norm."""

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            output = inner(*args, **kwargs)
            call = current()
            if call is None:
                return output
            if self._given is not None:
                self._learn(self._given, (args, kwargs))
                self._given = None
            if call.state.modulated is None:
                first = output if isinstance(output, torch.Tensor) else output[0]
                call.state.modulated = first.detach()
            return output

        self.check_compiled()
        ledger.intercept(self._norm, around)

    def check_compiled(self) -> None:
        """Refuse a compiled block, which has its norm in its graph."""
        patch = patch_of(self._block)
        if patch is not None and patch.compiled is not None:
            raise UnsupportedError(
                f"{self._name} is not seen in a compiled block; do not compile it, or use another "
                "caching method"
            )

    def ask(self, call: Call, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        """Ask the norm for a call that is to be decided: another one runs through it itself."""
        if self._sources is None:
            self._given = (args, kwargs)
        if call.verdict is not None:
            return
        if self._sources is None:
            raise UnsupportedError(
                f"{self._name} did not run on a computed step; use another caching method"
            )
        places, names = self._sources
        self._norm(
            *(source(args, kwargs) for source in places),
            **{name: source(args, kwargs) for name, source in names.items()},
        )

    def _learn(self, block: Given, norm: Given) -> None:
        args, kwargs = norm
        self._sources = (
            [self._source(value, block) for value in args],
            {name: self._source(value, block) for name, value in kwargs.items()},
        )

    def _source(self, value: Any, block: Given) -> Callable[[tuple[Any, ...], Any], Any]:
        """Where the norm gets an argument from: one of the block's, or always the same."""
        if not isinstance(value, torch.Tensor):
            return lambda args, kwargs: value
        for index, each in enumerate(block[0]):
            if each is value:
                return lambda args, kwargs: args[index]
        for name, each in block[1].items():
            if each is value:
                return lambda args, kwargs: kwargs[name]
        if self._contract.added and value.shape == self._hidden(*block).shape:
            return self._hidden
        raise UnsupportedError(
            f"{self._name} takes what its block has made of its arguments, so that it cannot be "
            "asked before; use another caching method"
        )

    def _hidden(self, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> torch.Tensor:
        """The hidden state as the norm gets it: with what the block adds to it."""
        given = {**dict(zip(argument_names(self._block), args, strict=False)), **kwargs}
        hidden, added = given[self._contract.hidden], given.get(self._contract.added)
        return hidden if added is None else hidden + added
