"""`tune`: search the steps worth computing, or thresholds; `fit`: measure a method's constants;
`audit`: watch the quality while a pipeline is used."""

from .audit import AuditReport, audit
from .fitting import fit
from .refine import Refine
from .search import tune
from .space.space import Space
from .target import Target

__all__ = ["AuditReport", "Refine", "Space", "Target", "audit", "fit", "tune"]
