"""Sparse-linear attention (SLA): its options, map, linear branch and trained weights."""

from .config import SLAConfig

__all__ = ["SLAConfig"]
