"""A package of somebody else: importing it adds one of each kind of thing to ditaccel."""

from . import attention, cache, calls, family, metric, peer

__all__ = ["attention", "cache", "calls", "family", "metric", "peer"]
