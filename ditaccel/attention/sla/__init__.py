"""Sparse-linear attention (SLA): its config, map, heads and trained weights."""

from .planner import SLAConfig

__all__ = ["SLAConfig"]
