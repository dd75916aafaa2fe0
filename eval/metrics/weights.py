"""Weights files that users hand in: safetensors, or a pickle that is read as plain tensors only."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditaccel.errors import UsageError
from ditaccel.io import given


def load_weights(path: str | Path) -> dict[str, Tensor]:
    """The tensors of a weights file, in float32.

    Args:
        path: `.safetensors`, or `.pth`/`.pt` (read with `weights_only`: no code runs).

    Raises:
        UsageError: missing, damaged, or not a table of tensors.
    """
    path = given.path(path)
    if not path.is_file():
        raise UsageError(f"no weights file at {path}")
    tensors: Any
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            tensors = load_file(path)
        else:
            tensors = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"{path} cannot be read as weights ({line}); get it again") from error
    if isinstance(tensors, dict) and isinstance(tensors.get("state_dict"), dict):
        tensors = tensors["state_dict"]
    if not isinstance(tensors, dict) or not all(isinstance(v, Tensor) for v in tensors.values()):
        raise UsageError(f"{path} holds no table of tensors (a state_dict)")
    return {str(k): v.float() if v.is_floating_point() else v for k, v in tensors.items()}
