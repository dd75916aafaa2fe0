"""Frames of a clip, for maps in the order of the model; what stands for them where there are none.

In a picture, rows stand for frames, and on a line (where it is not known where tokens lie) single
tokens. Frames that hold fewer tokens than a tile are joined, since no tile could tell them apart.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from .boxes import grid_or_line
from .planner import LayerContext


@dataclass(frozen=True)
class Frames:
    """Runs of tokens of the sequence.

    Attributes:
        count: of frames.
        size: tokens of each; the last may hold fewer.
        start: place of the first token.
        tokens: of all frames.
    """

    count: int
    size: int
    start: int
    tokens: int

    @classmethod
    def of(cls, context: LayerContext, least: int = 1) -> Frames:
        """The frames of a call, of at least `least` tokens each."""
        (frames, rows, columns), start, _ = grid_or_line(context)
        tokens = frames * rows * columns
        size = tokens // (frames if frames > 1 else rows if rows > 1 else columns)
        size = min(tokens, size * -(-least // size))
        return cls(-(-tokens // size), size, start, tokens)

    def labels(self, length: int) -> Tensor:
        """The frame of each token of the sequence, int64 `(length,)`; -1 for text and others."""
        labels = torch.full((length,), -1)
        labels[self.start : self.start + self.tokens] = torch.arange(self.tokens) // self.size
        return labels
