"""`tune`: search the steps worth computing, or the thresholds of an attention method."""

from .target import Target
from .tuner import tune

__all__ = ["Target", "tune"]
