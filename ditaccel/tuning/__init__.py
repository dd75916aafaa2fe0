"""`tune`: search the steps worth computing, or the thresholds of an attention method."""

from .refine import Refine
from .target import Target
from .tuner import tune

__all__ = ["Refine", "Target", "tune"]
