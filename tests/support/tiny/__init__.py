"""Tiny random pipelines, built offline: they prove mechanics, never quality.

One file per family, with the name that it has in `pipelines/`; each registers its pipelines with
`@tiny_family(...)`, and nothing else needs an edit. Those of `FAMILIES` are long enough (121 tokens
and more) for attention tiles; `tiny_dit`, `tiny_flux`, `tiny_wan` and `tiny_wan22` are shorter, and
take a number of layers.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Mapping
from typing import Any

import torch

from tiny.builder import REGISTRY, Tiny, TinyFamily, offered
from tiny.dit import tiny_dit
from tiny.flux import tiny_flux
from tiny.wan import tiny_wan, tiny_wan22

__all__ = [
    "ATTENTION_FAMILIES",
    "FAMILIES",
    "VARIANTS",
    "TinyFamily",
    "families_tested",
    "family_of",
    "generate",
    "offered",
    "other_prompt",
    "peaked",
    "tiny_dit",
    "tiny_flux",
    "tiny_wan",
    "tiny_wan22",
]


def _collected() -> dict[str, TinyFamily]:
    """All pipelines that the files of this folder register, by name."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")
    return {name: tiny for name, tiny in sorted(REGISTRY.items()) if offered(tiny.family)}


_ALL = _collected()
FAMILIES = {name: tiny for name, tiny in _ALL.items() if not tiny.variant}
VARIANTS = {name: tiny for name, tiny in _ALL.items() if tiny.variant}
ATTENTION_FAMILIES = [name for name, tiny in FAMILIES.items() if tiny.attention]


def families_tested() -> set[str]:
    """Families of `FAMILIES`, and those of `VARIANTS` with the very contracts of one of them."""
    from ditaccel.pipelines import adapters

    def contracts(family: str) -> tuple[Any, ...]:
        adapter = adapters()[family]
        return adapter.blocks, adapter.attention, adapter.tokens, adapter.text

    tested = {tiny.family for tiny in FAMILIES.values()}
    known = [contracts(family) for family in tested]
    twins = {tiny.family for tiny in VARIANTS.values() if contracts(tiny.family) in known}
    return tested | twins


def family_of(name: str) -> str:
    """The adapter's name for a key of `FAMILIES`."""
    return FAMILIES[name].family


def generate(pipe: Any, call: dict[str, Any], seed: int = 0, **changes: Any) -> torch.Tensor:
    """Run a pipeline with a fresh generator; returns its images, frames or latents as a tensor."""
    arguments = {**call, **changes}
    output = pipe(**arguments, generator=torch.Generator().manual_seed(seed))
    if isinstance(output, list):  # windows of a modular pipeline
        return torch.cat(output, -1)
    result = output if torch.is_tensor(output) else output[0]  # modular pipelines give one value
    if isinstance(result, list) and torch.is_tensor(result[0]):
        result = result[-1]  # FramePack: what there was after each section
    return torch.as_tensor(result)


def other_prompt(call: Mapping[str, Any]) -> dict[str, Any]:
    """The same call with another prompt: embeddings, class labels or words are exchanged."""
    generator = torch.Generator().manual_seed(2)

    def other(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        if isinstance(value, list) and all(isinstance(part, torch.Tensor) for part in value):
            return [other(part) for part in value]
        return value

    words = ("embeds", "hiddens")
    changed = {n: other(v) if any(w in n for w in words) else v for n, v in call.items()}
    if call.get("prompt") is not None:
        changed["prompt"] = "a blue square"
    if not any("prompt" in name for name in call) and "video" in call:
        changed["video"] = call["video"][::-1]
    if "class_labels" in call:
        changed["class_labels"] = [label + 2 for label in call["class_labels"]]
    return changed


def peaked(name: str) -> Tiny:
    """A pipeline of `FAMILIES` that normalizes queries, with peaked attention: much to skip.

    Queries are all but reduced to one channel of each head: each looks at the keys at either end of
    that channel, so that whole tiles of queries have no use for a tile of keys.
    """
    pipe, call = FAMILIES[name]()
    found = 0
    with torch.no_grad():
        for part in (pipe.transformer, getattr(pipe, "transformer_2", None)):
            for path, weight in () if part is None else part.named_parameters():
                if not path.endswith(("norm_q.weight", "norm_added_q.weight")):
                    continue
                if "attn2" in path and name.startswith(("wan", "ltx")):
                    continue  # cross-attention
                head_dim = weight.numel() // (2 if name.startswith(("wan", "ltx")) else 1)
                weight.mul_(0.01)
                weight[::head_dim] = 200.0
                found += 1
    assert found
    return pipe, call
