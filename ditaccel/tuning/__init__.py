"""`tune`: search the steps worth computing, or thresholds; `fit`: measure a method's constants."""

from .fitting import fit
from .refine import Refine
from .search import tune
from .target import Target

__all__ = ["Refine", "Target", "fit", "tune"]
