"""What is forecast, where it is read off on a computed step, and where a forecast is put.

A policy names one of `TARGETS`, or `module` granularity (`modules/`). Each target has its own
`install`, `remember` and `predict`; a method may bring a target of its own (`@target("name")`).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, ClassVar, TypeVar

import torch

from ...core.outputs import form_of, join, split, tensors_of, with_tensors
from ...core.patching import PatchLedger
from ...errors import ConfigError
from .blocks import Block, Blocks
from .gate import Gate
from .state import Call, nbytes_of

T = TypeVar("T", bound="type[Target]")


class Target:
    """Base of all targets: the hidden state after the last block.

    Args:
        blocks: of the transformer.
        order: of the forecast.
        basis: of the forecast.
        gate: decides; runs its first and last blocks on every step.
        check: called when the size of something that is remembered has become known; it may make
            the policy smaller, and then another target takes the place of this one.

    Attributes:
        unit: what one remembered tensor is, for people.
        whole_call: the output of the transformer is forecast, and no block has to run.
        every_block: blocks run on forecast steps too, as what is forecast lies inside them.
        needs_samples: it reads the latents that the transformer is given (`state.samples`).
    """

    unit: ClassVar[str] = "hidden states"
    whole_call: ClassVar[bool] = False
    every_block: ClassVar[bool] = False
    needs_samples: ClassVar[bool] = False

    def __init__(
        self,
        blocks: Blocks,
        order: int,
        basis: str,
        gate: Gate,
        check: Callable[[], None],
    ) -> None:
        self.blocks = blocks
        self._order, self._basis = order, basis
        self._first_blocks = gate.first_blocks
        self._check = check
        # of the block whose output is forecast; there are none where whole calls are all
        self._end = blocks.main[-1 - gate.last_blocks] if blocks else -1

    @staticmethod
    def places(blocks: Sequence[Block], gate: Gate) -> int:
        """Number of places at which something is remembered."""
        return 1

    def install(self, ledger: PatchLedger, call: Callable[[], Call | None]) -> None:
        """Patch what lies inside blocks.

        Args:
            ledger: takes note of the patches.
            call: the call in progress, None for none or where another target is in force.
        """

    def check_compiled(self) -> None:
        """Refuse compiled blocks where what is forecast lies inside them."""

    def check_ranks(self) -> None:
        """Refuse what ranks that compute the transformer together would do each in its own way.

        Raises:
            ConfigError: they would choose different bases.
        """
        if self._basis == "auto" and not self.whole_call:
            raise ConfigError(
                "basis='auto' chooses by what each rank sees, and several compute this transformer "
                "together; use basis='taylor', or target='output'"
            )

    def runs(self, index: int) -> bool:
        """Whether a block runs although the step is forecast."""
        return False

    def feature(self, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        """What is remembered of the hidden state (or output) of a computed step."""
        return hidden

    def remember(self, call: Call, feature: torch.Tensor) -> torch.Tensor:
        """Take up a feature; returns the copy that is kept."""
        call.state.snapshot.hidden = nbytes_of(feature)
        call.state.last.push(call.place, feature)
        # the block's own memory may be written to again
        return call.state.last.newest

    def predict(self, call: Call) -> torch.Tensor:
        """The feature of a step that is not computed."""
        return call.state.last.forecast(call.place, call.order)

    def whole(self, call: Call, feature: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
        """What a feature stands for.

        Args:
            call: the call.
            feature: as `predict` gave it.
            shape: of the hidden state that is wanted, None for an output of the transformer.
        """
        return feature

    def stand_in(self, call: Call) -> Any:
        """What the transformer is to return on a step of which nothing runs; None: it must run."""
        return None

    def joined(self, call: Call, output: Any) -> torch.Tensor:
        """What the transformer returned on a computed step, as one tensor (of `whole_call`)."""
        raise TypeError(f"{type(self).__name__} forecasts nothing that the transformer returns")

    def replaced(self, call: Call, output: Any, sample: torch.Tensor) -> Any:
        """The transformer's output with another tensor in it (of `whole_call`)."""
        raise TypeError(f"{type(self).__name__} forecasts nothing that the transformer returns")


TARGETS: dict[str, type[Target]] = {"hidden": Target}


def target(name: str) -> Callable[[T], T]:
    """Register a target under a name that policies give."""

    def register(cls: T) -> T:
        TARGETS[name] = cls
        return cls

    return register


@target("residual")
class ResidualTarget(Target):
    """What blocks add to the output of the gate's first ones, or to the first one's input."""

    def runs(self, index: int) -> bool:
        # a follower's residual counts from the same blocks' output, as its leader's does
        return index in self.blocks.main[: self._first_blocks]

    def feature(self, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        if call.base is None:
            return hidden
        return hidden - self._in_last(call.base, hidden.shape)

    def whole(self, call: Call, feature: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
        if call.base is None or shape is None:
            return feature
        base = self.blocks.part(call.base, feature)
        return feature + self._in_last(base, shape)

    def _in_last(self, base: torch.Tensor, shape: torch.Size) -> torch.Tensor:
        """The base in the layout of the block whose output is forecast."""
        blocks = self.blocks
        return blocks.as_in(self._end, base, blocks.after(self._first_blocks), shape)


@target("output")
class OutputTarget(Target):
    """What the transformer returns: it need not run on a step that is decided before its blocks."""

    unit = "outputs"
    whole_call = True

    def joined(self, call: Call, output: Any) -> torch.Tensor:
        state = call.state
        tensors = tensors_of(output, call.streams)
        state.shapes = [tensor.shape for tensor in tensors]
        form = form_of(output, call.streams, call.given)
        if form is not None:
            state.form[call.return_dict] = form
        joined = join(tensors)
        state.snapshot.hidden = nbytes_of(joined)
        self._check()
        return joined

    def replaced(self, call: Call, output: Any, sample: torch.Tensor) -> Any:
        return with_tensors(output, split(sample, call.state.shapes))

    def stand_in(self, call: Call) -> Any:
        form = call.state.form.get(call.return_dict)
        return None if form is None else form(split(call.state.last.newest, call.state.shapes))


@target("output_residual")
class OutputResidualTarget(OutputTarget):
    """What the transformer's output differs by from the latents that it is given."""

    unit = "outputs less their latents"
    needs_samples = True

    def feature(self, call: Call, hidden: torch.Tensor) -> torch.Tensor:
        return hidden - self._latents(call, hidden)

    def whole(self, call: Call, feature: torch.Tensor, shape: torch.Size | None) -> torch.Tensor:
        return feature + self._latents(call, feature)

    def _latents(self, call: Call, like: torch.Tensor) -> torch.Tensor:
        pairs = zip(call.state.samples, call.state.shapes, strict=True)
        return join([_as_returned(sample, shape) for sample, shape in pairs]).to(like.dtype)


def _as_returned(latents: torch.Tensor, shape: torch.Size) -> torch.Tensor:
    """Latents in the shape of what the transformer returned for them.

    Condition channels come behind the latents' own; what is returned besides (a learnt variance)
    has 0 in its place, so that it is held as it was.
    """
    for axis, size in enumerate(shape):
        missing = size - latents.shape[axis]
        latents = latents.narrow(axis, 0, min(size, latents.shape[axis]))
        if missing > 0:
            padding = list(latents.shape)
            padding[axis] = missing
            latents = torch.cat([latents, latents.new_zeros(padding)], axis)
    return latents
