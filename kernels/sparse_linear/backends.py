"""The backends of sparse-linear attention, in the order of preference, each with its backward."""

from __future__ import annotations

from ..dispatch import Backend, anywhere
from . import naive, torch_backend, triton_backend
from .call import SparseLinearCall

BACKENDS: tuple[Backend[SparseLinearCall], ...] = (
    Backend("triton", triton_backend.why_not, triton_backend.forward, triton_backend.backward),
    Backend("torch", anywhere, torch_backend.forward, torch_backend.backward),
    Backend("naive", naive.why_not, naive.run, by_name_only=True),
)
