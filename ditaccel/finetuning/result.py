"""What fine-tuning made, and whether it was worth it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Finetuned:
    """What `finetune` made.

    Attributes:
        adapter: file for the option `weights` of the method's config.
        steps: of training.
        error_before: relative error (RMS) of the transformers' outputs on held-out calls before
            training: that of the method without weights.
        error_after: the same after training.
        size: bytes of the file.
    """

    adapter: Path
    steps: int
    error_before: float
    error_after: float
    size: int

    @property
    def better(self) -> bool:
        """Whether training brought the outputs nearer to the dense ones."""
        return self.error_after < self.error_before

    @property
    def verdict(self) -> str:
        """One line on what training changed."""
        change = f"{self.error_before:.4f} before, {self.error_after:.4f} after {self.steps} steps"
        if self.better:
            return f"the adapter brings the outputs nearer to the dense ones ({change})"
        return (
            f"training made the outputs no better ({change}), so leave {self.adapter} unused; "
            "lower lr, or train longer, in another folder"
        )
