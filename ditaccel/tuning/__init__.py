"""`tune`: search the steps worth computing, or thresholds; `fit`: measure a method's constants."""

from .fitting import fit
from .refine import Refine
from .target import Target
from .tuner import tune

__all__ = ["Refine", "Target", "fit", "tune"]
