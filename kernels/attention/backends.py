"""The backends of tile attention, in the order of preference, each with its backward."""

from __future__ import annotations

from ..dispatch import Backend
from . import flex_backend, naive, torch_backend, torch_backward, triton_backend, triton_backward
from .call import AttentionCall

BACKENDS: tuple[Backend[AttentionCall], ...] = (
    Backend("triton", triton_backend.why_not, triton_backend.run, triton_backward.run),
    Backend("flex", flex_backend.why_not, flex_backend.run, by_name_only=True),
    Backend("torch", torch_backend.why_not, torch_backend.run, torch_backward.run),
    Backend("naive", naive.why_not, naive.run, by_name_only=True),
)
