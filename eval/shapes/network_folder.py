"""Folders of the small networks: `config.json` beside `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from torch import nn

Net = TypeVar("Net", bound=nn.Module)


def load_network(folder: Path, kind: str, build: Callable[[Any], Net]) -> Net:
    """Load a network in float32 and eval mode.

    Args:
        folder: of the network.
        kind: its class, for messages.
        build: makes it from what `config.json` holds.

    Raises:
        FileNotFoundError: one of the two files is missing.
        ValueError: the files do not describe this network.
    """
    from safetensors.torch import load_file

    for name in ("config.json", "model.safetensors"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"{folder} holds no {name}: not a {kind} folder")
    config = json.loads((folder / "config.json").read_text())
    try:
        net = build(config)
        weights = load_file(folder / "model.safetensors")
        net.load_state_dict({k: v.float() for k, v in weights.items()})
    except (KeyError, TypeError, RuntimeError) as error:
        line = str(error).strip().split("\n")[0]
        raise ValueError(f"{folder} does not hold a {kind}: {line}") from error
    return net.eval()


def save_network(net: nn.Module, folder: Path, config: dict[str, Any]) -> None:
    """Write `config.json` and `model.safetensors` (float16)."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config) + "\n")
    weights = {k: v.detach().half().contiguous().cpu() for k, v in net.state_dict().items()}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
