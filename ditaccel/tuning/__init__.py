"""`tune`: search the steps worth computing, or the thresholds of an attention method."""

from .tuner import Target, tune

__all__ = ["Target", "tune"]
