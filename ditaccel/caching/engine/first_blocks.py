"""What a gate sees of the first blocks before it decides: their modulated input, what they make."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ...core.patching import PatchLedger
from ...errors import UnsupportedError
from .blocks import Block, Blocks
from .modulation import Modulation, modulation_of
from .policy import CachePolicy
from .state import Call, nbytes_of


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
        self._asks = False
        self._idle = policy.outside or not blocks
        if self._idle:
            return
        gate, main = policy.gate, blocks.main
        if gate.first_blocks + gate.last_blocks >= len(main):
            last = f" and the last {gate.last_blocks} behind them" if gate.last_blocks else ""
            number = gate.first_blocks
            first = "the first block is" if number == 1 else f"the first {number} blocks are"
            raise UnsupportedError(
                f"{first} to run before it is decided about the others{last}, and there are "
                f"{len(main)} in all; use fewer"
            )
        kinds = {b.contract.kind(path) for b in blocks for path in b.contract.forecast_modules}
        if gate.module_kinds and not kinds.intersection(gate.module_kinds):
            raise UnsupportedError(
                f"there are no modules of the kind {' or '.join(gate.module_kinds)} here; use "
                "another caching method"
            )
        self._asks = gate.needs_modulated or gate.needs_embedding
        if gate.needs_modulated:
            self._modulation = modulation_of(blocks[main[0]])

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
        if self._asks and call.verdict is None and not gate.first_blocks:
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
