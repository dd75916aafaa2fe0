"""Some tokens of all heads in exchange for all tokens of some heads, and back.

This is what "Ulysses" (DeepSpeed-Ulysses, arXiv 2309.14509) does around attention: each rank comes
with its part of the tokens and leaves with it, and between the two it has whole sequences, of its
part of the heads. diffusers does the same inside its attention function; here it happens outside,
so that what runs in between sees an ordinary attention call.

Models that keep text and image apart share out either of them: put together in the order of the
ranks, text and image take turns. Here tokens are put into the order that they have in one process.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.distributed as dist
from torch import Tensor

from ..errors import UnsupportedError
from .ranks import HeadShare, Ranks

Pieces = tuple[tuple[int, int], ...]


def parts_of(count: int, ranks: int) -> list[int]:
    """How many of `count` each rank has, as `tensor_split` cuts them."""
    share, more = divmod(count, ranks)
    return [share + (rank < more) for rank in range(ranks)]


def places(lengths: Sequence[int], text: int = 0, in_front: bool = True) -> list[Pieces] | None:
    """Where the tokens of each rank are in the order of one process.

    Args:
        lengths: tokens of each rank, in the order of the ranks.
        text: how many of all tokens are text that was shared out apart from the others; 0 where
            one sequence was shared out.
        in_front: whether text is in front of the others; else behind them.

    Returns:
        Of each rank, the ranges `(start, end)` that its tokens fill, one after the other; None
        where the tokens were shared out in another way.
    """
    ranks, length = len(lengths), sum(lengths)
    streams = [text, length - text] if in_front else [length - text, text]
    parts = [parts_of(count, ranks) for count in streams] if text else [list(lengths)]
    if any(sum(own) != total for own, total in zip(zip(*parts, strict=True), lengths, strict=True)):
        return None
    found: list[list[tuple[int, int]]] = [[] for _ in lengths]
    start = 0
    for stream in parts:
        for rank, count in enumerate(stream):
            found[rank].append((start, start + count))
            start += count
    return [tuple(pieces) for pieces in found]


def shares(heads: int, ranks: Ranks, uneven: bool, layer: str) -> HeadShare:
    """How the heads of a layer are shared out.

    Args:
        heads: of the layer.
        ranks: that share them.
        uneven: whether their counts may differ (`ulysses_anything`); as in diffusers, all ranks
            but the last then have the same.
        layer: name of the layer, for the message.

    Raises:
        UnsupportedError: they cannot be shared out.
    """
    most = -(-heads // ranks.count)
    counts = [min(most, heads - most * rank) for rank in range(ranks.count)]
    if counts[-1] < 1 or (counts[-1] != most and not uneven):
        more = "" if uneven or counts[-1] < 1 else ", or ulysses_anything=True"
        raise UnsupportedError(
            f"{layer} has {heads} heads, which {ranks.count} ranks cannot share alike; choose a "
            f"ulysses_degree that divides {heads}{more}"
        )
    return HeadShare(ranks, tuple(counts))


@dataclass(frozen=True)
class Exchange:
    """The exchange around one attention call.

    Attributes:
        ranks: that take part.
        places: of the tokens of each rank (`places`).
    """

    ranks: Ranks
    places: Sequence[Pieces]

    @property
    def _lengths(self) -> list[int]:
        return [sum(end - start for start, end in pieces) for pieces in self.places]

    def to_heads(self, x: Tensor, share: HeadShare) -> Tensor:
        """All tokens of this rank's heads.

        Args:
            x: this rank's tokens `(B, H, L of this rank, D)`, of all heads.
            share: of the heads.

        Returns:
            `(B, heads of this rank, L, D)`, a view of `(B, L, H, D)` as models hand it over.
        """
        here, lengths = self.ranks.here, self._lengths
        batch, width = x.shape[0], x.shape[3]
        given = list(x.transpose(1, 2).split(list(share.counts), 2))
        shapes = [(batch, length, share.counts[here], width) for length in lengths]
        made = x.new_empty((batch, sum(lengths), share.counts[here], width))
        self._put(self._swap(given, shapes), made, 1)
        return made.transpose(1, 2)

    def to_tokens(self, x: Tensor, share: HeadShare) -> Tensor:
        """The way back: this rank's tokens of all heads; see `to_heads`."""
        here, lengths = self.ranks.here, self._lengths
        tokens = x.transpose(1, 2)
        given = [
            torch.cat([tokens[:, start:end] for start, end in pieces], 1) for pieces in self.places
        ]
        shapes = [(x.shape[0], lengths[here], count, x.shape[3]) for count in share.counts]
        return torch.cat(self._swap(given, shapes), 2).transpose(1, 2)

    def mask(self, mask: Tensor) -> Tensor:
        """A mask of the keys `(…, L of this rank)`, over all of them, in their order."""
        kind = mask.dtype
        sent = mask.to(torch.uint8) if kind == torch.bool else mask
        made = sent.new_empty((*mask.shape[:-1], sum(self._lengths)))
        self._put(self.ranks.gathered(sent, self._lengths, -1), made, -1)
        return made.to(kind)

    def _put(self, parts: Sequence[Tensor], made: Tensor, dim: int) -> None:
        """Write the tokens of all ranks to their places along a dimension."""
        for pieces, part in zip(self.places, parts, strict=True):
            sizes = [end - start for start, end in pieces]
            for (start, _), size, piece in zip(pieces, sizes, part.split(sizes, dim), strict=True):
                made.narrow(dim, start, size).copy_(piece)

    def _swap(self, given: Sequence[Tensor], shapes: Sequence[tuple[int, ...]]) -> list[Tensor]:
        """Give one tensor to each rank, and get one of such a shape from each."""
        sent = torch.cat([part.flatten() for part in given])
        sizes = [math.prod(shape) for shape in shapes]
        received = sent.new_empty(sum(sizes))
        counts = [part.numel() for part in given]
        dist.all_to_all_single(received, sent, sizes, counts, group=self.ranks.group)
        parts = received.split(sizes)
        return [part.view(shape) for part, shape in zip(parts, shapes, strict=True)]
