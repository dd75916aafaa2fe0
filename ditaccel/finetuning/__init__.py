"""`finetune`: train an adapter so that sparse-linear attention matches the dense output."""

from .run import finetune

__all__ = ["finetune"]
