"""The blocks of a transformer, each with its contract."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, overload

import torch
from torch import Tensor, nn

from ...core.calls import argument_names
from ...core.outputs import join, split
from ...core.ranks import Ranks
from ...errors import UnsupportedError
from ...pipelines import BlockContract


@dataclass(frozen=True)
class Block:
    """One block with its contract, arguments resolved to positions.

    Where a contract has a second stream, the hidden state is both streams, joined. Its `name` is
    its path in the transformer, such as `transformer_blocks.3`.
    """

    module: nn.Module
    contract: BlockContract
    positions: dict[str, int]
    cost: int
    name: str = ""

    def argument(self, name: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The argument of this name in a call of the block."""
        if name in kwargs:
            return kwargs[name]
        return args[self.positions[name]]

    def streams_in(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
        """The streams that a call is given: a video may come without its sound."""
        given = (self.argument(name, args, kwargs) for name in self.contract.streams)
        return [stream for stream in given if stream is not None]

    def hidden_in(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], tokens: int | None = None
    ) -> Tensor:
        """The hidden state that goes in; of a fused one the last or first `tokens`, if given."""
        return self._image(join(self.streams_in(args, kwargs)), tokens)

    def hidden_out(self, output: Any, tokens: int | None = None) -> Tensor:
        """The hidden state that came out; `tokens` as in `hidden_in`."""
        if not isinstance(output, Tensor):
            found = dict(zip(self.contract.returns, output, strict=False))
            streams = (found.get(name) for name in ("hidden", "second_stream"))
            output = join([stream for stream in streams if stream is not None])
        return self._image(output, tokens)

    def _image(self, joint: Tensor, tokens: int | None) -> Tensor:
        if tokens is None or not self.contract.joint_text or joint.shape[1] == tokens:
            return joint
        return joint[:, -tokens:] if self.contract.joint_text == "front" else joint[:, :tokens]

    def text_out(self, output: Any, tokens: int | None = None) -> Tensor | None:
        """The text that came out beside the hidden state, None where there is none."""
        contract = self.contract
        parts = (output,) if isinstance(output, Tensor) else output
        found = dict(zip(contract.returns, parts, strict=False))
        joint = found["hidden"]
        if tokens is None or not contract.joint_text or joint.shape[1] == tokens:
            return found.get("encoder")
        return joint[:, :-tokens] if contract.joint_text == "front" else joint[:, tokens:]

    def passing(
        self,
        hidden: Tensor | None,
        args: tuple[Any, ...],
        kwargs: dict[str, Any],
        text: Tensor | None = None,
    ) -> Any:
        """The output of a block that does not run: `hidden` and `text`, all else unchanged.

        Args:
            hidden: None for the one that the block was given.
            args: of the call.
            kwargs: of the call.
            text: likewise; only given with a hidden state.
        """
        contract = self.contract
        streams = self.streams_in(args, kwargs)
        if hidden is not None and contract.joint_text:
            streams = [self._beside_text(hidden, streams[0], text)]
        elif hidden is not None:
            streams = split(hidden, [stream.shape for stream in streams])
        if contract.returns == ("hidden",):
            return streams[0]
        # a hint has the shape of the stream it comes from, and goes where nothing reads it
        second = streams[1] if len(streams) == 2 else None
        found: dict[str, Any] = {"hidden": streams[0], "second_stream": second, "hint": streams[0]}
        if contract.encoder is not None:
            given = self.argument(contract.encoder, args, kwargs)
            found["encoder"] = given if text is None else text
        return tuple(found[name] for name in contract.returns)

    def _beside_text(self, image: Tensor, joint: Tensor, text: Tensor | None) -> Tensor:
        tokens = image.shape[1]
        if tokens == joint.shape[1]:
            return image
        if self.contract.joint_text == "front":
            return torch.cat([joint[:, :-tokens] if text is None else text, image], dim=1)
        return torch.cat([image, joint[:, tokens:] if text is None else text], dim=1)


class Blocks(Sequence[Block]):
    """The blocks of one transformer in the order in which they run.

    Args:
        blocks: from `find_blocks`; none where whole calls are all that is seen.
        ranks: that compute the transformer together, None for one alone.

    Attributes:
        main: indices of those that do not only give hints.
        last_side: index of the last one that only gives hints, -1 for none.
        total_cost: parameters of all blocks.
    """

    def __init__(self, blocks: Sequence[Block] = (), ranks: Ranks | None = None) -> None:
        self._blocks = list(blocks)
        hints = [block.contract.gives_hints for block in self._blocks]
        self.main = [index for index, side in enumerate(hints) if not side]
        self.last_side = max((index for index, side in enumerate(hints) if side), default=-1)
        self.total_cost = sum(block.cost for block in self._blocks) or 1
        self.ranks = ranks

    def __len__(self) -> int:
        return len(self._blocks)

    @overload
    def __getitem__(self, index: int) -> Block: ...

    @overload
    def __getitem__(self, index: slice) -> list[Block]: ...

    def __getitem__(self, index: int | slice) -> Block | list[Block]:
        return self._blocks[index]

    def after(self, count: int) -> int:
        """Index of the last of the first `count` main blocks; of the first one for 0."""
        return self.main[max(count, 1) - 1]

    def as_in(self, index: int, hidden: Tensor, source: int, shape: torch.Size) -> Tensor:
        """A hidden state of one block in the layout of another one.

        Args:
            index: of the block whose layout is wanted.
            hidden: the hidden state.
            source: index of the block that it comes from.
            shape: of a hidden state of the first block.
        """
        here, there = self._blocks[index].contract, self._blocks[source].contract
        return hidden if here.regrouped == there.regrouped else _regrouped(hidden, shape)

    def part(self, tokens: Tensor, like: Tensor) -> Tensor:
        """This rank's part, where the first block is the one in which tokens are shared out."""
        if self.ranks is None or tokens.shape == like.shape:
            return tokens
        return self.ranks.part(tokens)


def _in_order(
    transformer: nn.Module, contracts: tuple[BlockContract, ...]
) -> Iterator[tuple[str, nn.Module, BlockContract]]:
    """Blocks with their names and contracts, in the order in which they run."""
    runs: list[list[Any]] = []
    for contract in contracts:
        if not contract.takes_turns or not runs:
            runs.append([])
        modules = getattr(transformer, contract.container, None) or ()
        named = enumerate(modules)
        runs[-1].append([(f"{contract.container}.{i}", each, contract) for i, each in named])
    for run in runs:
        for turn in itertools.zip_longest(*run):
            yield from (each for each in turn if each is not None)


def find_blocks(transformer: nn.Module, contracts: tuple[BlockContract, ...]) -> list[Block]:
    """Return the blocks in the order in which they run.

    Raises:
        UnsupportedError: fewer than two blocks, or a block without an argument of its contract.
    """
    blocks = []
    for name, module, contract in _in_order(transformer, contracts):
        names = argument_names(module)
        needed = [n for n in (*contract.streams, contract.encoder) if n is not None]
        missing = [n for n in needed if n not in names]
        if missing:
            raise UnsupportedError(
                f"{type(module).__name__}.forward has no argument {missing[0]!r}; this version "
                "of diffusers is not supported for this family"
            )
        cost = sum(p.numel() for p in module.parameters()) or 1
        blocks.append(Block(module, contract, {n: names.index(n) for n in needed}, cost, name))
    main = sum(not block.contract.gives_hints for block in blocks)
    if main < 2:
        raise UnsupportedError(
            f"{type(transformer).__name__} has {main} block(s); caching needs at least two"
        )
    return blocks


def placeholder(output: Any, before: Any = None) -> Any:
    """Of the right shape and without memory: what an idle module feeds is forecast anyway.

    Args:
        output: of the idle module.
        before: an earlier placeholder of it, which is taken again where it still fits.
    """
    if isinstance(output, Tensor):
        if (
            isinstance(before, Tensor)
            and before.shape == output.shape
            and before.dtype == output.dtype
            and before.device == output.device
        ):
            return before
        return output.new_zeros(1).expand(output.shape)
    earlier = before if isinstance(before, tuple) and len(before) == len(output) else ()
    return tuple(placeholder(p, b) for p, b in itertools.zip_longest(output, earlier))


def _regrouped(hidden: Tensor, like: torch.Size) -> Tensor:
    """Tokens `(B F, S, C)` as `(B S, F, C)`, for `like` of that shape."""
    grid = hidden.reshape(-1, like[1], hidden.shape[1], hidden.shape[-1])
    return grid.transpose(1, 2).reshape(like)
