"""A transformer's own weights, by the names they had before others changed its modules.

PEFT puts a layer into another one and hangs an adapter next to it; fusing projections makes new
weights of three old ones, which stay where they are and are not read any more.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ._compat import loads_from_copies

# Where PEFT keeps the layer that it has wrapped.
_WRAPPED = ("base_layer", "original_module")
# What diffusers fuses, and in which order.
_FUSED = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
    "to_added_kv": ("add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True)
class Slot:
    """Where a parameter is: it may be exchanged for another one there (`assign=True`)."""

    module: nn.Module
    leaf: str

    @property
    def parameter(self) -> nn.Parameter:
        """The parameter that is there now."""
        found = self.module._parameters[self.leaf]
        assert found is not None
        return found


def own_weights(transformer: nn.Module) -> dict[str, Slot]:
    """Places of the parameters by name, without adapters and fused projections."""
    found: dict[str, Slot] = {}
    seen: set[int] = set()
    for name, slot in _walk(transformer, ""):
        if id(slot.parameter) not in seen:  # tied weights have one name
            seen.add(id(slot.parameter))
            found[name] = slot
    return found


def _walk(module: nn.Module, path: str) -> Iterator[tuple[str, Slot]]:
    for inner in _WRAPPED:
        wrapped = module._modules.get(inner)
        if wrapped is not None:
            yield from _walk(wrapped, path)
            return
    for leaf, parameter in module._parameters.items():
        if parameter is not None:
            yield f"{path}{leaf}", Slot(module, leaf)
    fused = _fused_in(module)
    for name, child in module._modules.items():
        if child is not None and name not in fused:
            yield from _walk(child, f"{path}{name}.")


def _fused_in(module: nn.Module) -> dict[str, tuple[str, ...]]:
    """Fused projections of a module, each with the names of those that it was made of."""
    if not getattr(module, "fused_projections", False):
        return {}
    there = module._modules
    return {k: parts for k, parts in _FUSED.items() if k in there and set(parts) <= set(there)}


def _fused_weights(transformer: nn.Module) -> Iterator[tuple[nn.Module, str, list[str]]]:
    """Weights of fused projections: module, leaf, and the names of those they were made of."""
    for path, module in transformer.named_modules():
        prefix = "".join(f"{part}." for part in path.split(".") if part not in (*_WRAPPED, ""))
        for name, parts in _fused_in(module).items():
            fused = module.get_submodule(name)
            for leaf in ("weight", "bias"):
                if fused._parameters.get(leaf) is not None:
                    yield fused, leaf, [f"{prefix}{part}.{leaf}" for part in parts]


def slots_of(
    transformer: nn.Module, changes: Mapping[str, Tensor]
) -> tuple[list[tuple[Slot, Tensor]], list[str]]:
    """Where changes of weights belong now.

    Args:
        transformer: the transformer.
        changes: by the names of `own_weights`.

    Returns:
        Places and changes, those of projections that were fused joined; and the names of what is
        not there.
    """
    own = own_weights(transformer)
    found: list[tuple[Slot, Tensor]] = []
    covered: set[str] = set()
    for fused, leaf, keys in _fused_weights(transformer):
        if any(key in changes for key in keys):
            parts = [
                changes[k].float() if k in changes else own[k].parameter.data.new_zeros(()).float()
                for k in keys
            ]
            shapes = [own[k].parameter.shape for k in keys]
            device = next(changes[k].device for k in keys if k in changes)
            whole = [part.to(device).expand(s) for part, s in zip(parts, shapes, strict=True)]
            found.append((Slot(fused, leaf), torch.cat(whole)))
            covered.update(keys)
    missing = []
    for key, change in changes.items():
        if key in own and key not in covered:
            found.append((own[key], change))
        elif key not in own:
            missing.append(key)
    return found, missing


def cannot_change(slot: Slot) -> str:
    """Why a weight cannot be changed where it is, with what to do; "" where it can."""
    data = slot.parameter.data
    if data.device.type == "meta":
        return "are on no device (sequential offload); use enable_model_cpu_offload() instead"
    if not data.is_floating_point() or data.element_size() < 2:
        kind = str(data.dtype).removeprefix("torch.")
        return f"are stored in 8 bits or fewer ({kind}), which would round changes away"
    if loads_from_copies(slot.module):
        return "are loaded from copies (group offload with a stream); use use_stream=False"
    return ""
