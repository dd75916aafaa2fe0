"""What a gate sees of the first blocks before it decides: their modulated input, what they make.

The modulated input is what the first block's adaptive norm gives: the hidden state, normalised,
scaled and shifted by the timestep. The norm is asked before the block runs, with what the block is
given; which of the block's arguments it takes shows on the first call that runs through it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ...core.calls import argument_names
from ...core.patching import PatchLedger, patch_of
from ...errors import UnsupportedError
from ...pipelines import submodule
from .blocks import Block, Blocks
from .policy import CachePolicy
from .state import Call, nbytes_of

Given = tuple[tuple[Any, ...], Mapping[str, Any]]


class FirstBlocks:
    """Shows the gate what it needs of the first blocks, and remembers what it compares.

    Args:
        blocks: of the transformer; none where whole calls are all that is seen.
        policy: whose gate decides.
        check: called when the size of something that is remembered has become known.

    Raises:
        UnsupportedError: the gate needs what these blocks do not have.
    """

    def __init__(self, blocks: Blocks, policy: CachePolicy, check: Callable[[], None]) -> None:
        self._blocks, self._policy, self._check = blocks, policy, check
        self._modulation: Modulation | None = None
        self._idle = policy.outside or not blocks
        if self._idle:
            return
        gate, main = policy.gate, blocks.main
        if gate.first_blocks + gate.last_blocks >= len(main):
            last = f" and the last {gate.last_blocks} behind them" if gate.last_blocks else ""
            raise UnsupportedError(
                f"the first {gate.first_blocks} blocks are to run before it is decided about the "
                f"others{last}, and there are {len(main)} in all; use fewer"
            )
        kinds = {b.contract.kind(path) for b in blocks for path in b.contract.forecast_modules}
        if gate.module_kinds and not kinds.intersection(gate.module_kinds):
            raise UnsupportedError(
                f"there are no modules of the kind {' or '.join(gate.module_kinds)} here; use "
                "another caching method"
            )
        if gate.needs_modulated:
            self._modulation = Modulation(blocks[main[0]])

    def install(self, ledger: PatchLedger, current: Callable[[], Call | None]) -> None:
        """Watch what the gate wants to see.

        Args:
            ledger: takes note of the patches.
            current: the call in progress, None for none.
        """
        if self._modulation is not None:
            self._modulation.install(ledger, current)

    def check_compiled(self) -> None:
        """Refuse what compiling after `accelerate` would hide."""
        if self._modulation is not None:
            self._modulation.check_compiled()

    def enter(
        self, call: Call, block: Block, args: tuple[Any, ...], kwargs: Any, inside: bool
    ) -> None:
        """Before the first block: sizes show, and a gate may see the modulated input.

        Args:
            call: the call.
            block: the first block.
            args: of the block.
            kwargs: of the block.
            inside: whether a hidden state is forecast, and not the transformer's output.
        """
        if self._idle:
            return
        state, gate = call.state, self._policy.gate
        call.base = call.before = block.hidden_in(args, kwargs)
        call.tokens = call.base.shape[1]
        if inside and not len(state.last):
            state.snapshot.hidden = nbytes_of(call.base)
            self._check()
        state.hidden_shapes = [stream.shape for stream in block.streams_in(args, kwargs)]
        if self._modulation is not None:
            self._modulation.ask(call, args, kwargs)
            if call.verdict is None and not gate.first_blocks:
                call.verdict = gate.before(call.step, state)

    def leave(self, call: Call, index: int, block: Block, output: Any) -> None:
        """Behind a block that ran; after the last one that the gate waits for, it decides."""
        before, blocks = call.before, self._blocks
        if before is None:
            return
        first_blocks = self._policy.gate.first_blocks
        if index == blocks.main[0]:
            before = call.base = call.before = blocks.part(before, block.hidden_out(output))
            call.tokens = before.shape[1]
        if index == blocks.after(first_blocks):
            call.before = None
            if self._policy.gate.last_blocks:
                call.text = block.text_out(output, call.tokens)
            if first_blocks:
                after = block.hidden_out(output, call.tokens)
                before = blocks.as_in(index, before, blocks.main[0], after.shape)
                self._compare(call, before, after)

    def _compare(self, call: Call, before: torch.Tensor, after: torch.Tensor) -> None:
        """Show the gate what the first blocks were given and gave, and remember it."""
        policy, state = self._policy, call.state
        state.probed = before, after
        if call.verdict is None:
            call.verdict = policy.gate.after_blocks(call.step, state, before, after)
        call.base = after
        early = call.step.index < policy.first_remembers_from
        if policy.first_feature is not None and not (call.forecasting or call.follows or early):
            feature = after if policy.first_feature == "output" else after - before
            state.snapshot.first = nbytes_of(feature)
            self._check()
            state.first.push(call.place, feature)


class Modulation:
    """The adaptive norm of a first block.

    Args:
        block: the first main block.

    Raises:
        UnsupportedError: it has no such norm.
    """

    def __init__(self, block: Block) -> None:
        path = block.contract.modulation
        self._block, self._norm = block.module, submodule(block.module, path)
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
        """Watch the norm.

        Args:
            ledger: takes note of the patch.
            current: the call in progress, None for none.
        """

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
        """Put the modulated input into the state of a call that is to be decided.

        Args:
            call: about to run the first block; one that is decided runs through the norm itself.
            args: of the block.
            kwargs: of the block.

        Raises:
            UnsupportedError: the norm did not run on earlier calls.
        """
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
        raise UnsupportedError(
            f"{self._name} takes what its block has made of its arguments, so that it cannot be "
            "asked before; use another caching method"
        )
