"""The registry of tiny random pipelines, one or more a family, and what tests must know of each.

A file `tiny_<anything>.py` in this folder registers its pipelines with `@tiny_family(...)`;
`tiny_families.FAMILIES` collects all of them. Nothing else needs an edit.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

Tiny = tuple[Any, dict[str, Any]]


@dataclass(frozen=True)
class TinyFamily:
    """One tiny pipeline; calling it builds the pipeline and the arguments of a generation.

    Attributes:
        make: returns `(pipe, call arguments)`, the same weights each time.
        family: name of the adapter.
        resized: changes of the call arguments that give another size.
        resized_tokens: image or video tokens of that size.
        images: samples of each guidance branch in one transformer call.
        dispatches: whether attention goes through `dispatch_attention_fn` (else SDPA directly).
        masked: whether attention is handed a mask.
        calls_a_layer: attention calls of each layer in one transformer call.
        variant: whether it shares all contracts with another one, and only differs in what the
            transformer is given; tests of all families leave it out (see `test_variants.py`).
        tokens: image tokens of a variant, those of reference images among them.
        steps: steps of a variant's denoising loop.
        rounding: relative error up to which another order of summation may move the result.
    """

    make: Callable[[], Tiny]
    family: str
    resized: Mapping[str, Any] = field(default_factory=dict)
    resized_tokens: int = 0
    images: int = 1
    dispatches: bool = True
    masked: bool = False
    calls_a_layer: int = 1
    variant: bool = False
    tokens: int = 0
    steps: int = 0
    rounding: float = 1e-5

    def __call__(self) -> Tiny:
        return self.make()

    @property
    def attention(self) -> bool:
        """Whether attention methods apply to the family."""
        from ditaccel.pipelines import adapters

        return bool(adapters()[self.family].attention)


REGISTRY: dict[str, TinyFamily] = {}


def tiny_family(family: str | None = None, **facts: Any) -> Callable[[Callable[[], Tiny]], Any]:
    """Register the decorated function under its name.

    Args:
        family: name of the adapter where it is not the function's name.
        **facts: other attributes of `TinyFamily`.
    """

    def register(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
        name = make.__name__
        assert name not in REGISTRY, f"two tiny pipelines are called {name}"
        REGISTRY[name] = TinyFamily(make, family or name, **facts)
        return make

    return register


def embeds_source() -> Callable[..., torch.Tensor]:
    """Seed the weights, and return a source of embeddings."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator)


def quiet(pipe: Any) -> Any:
    """The pipeline in evaluation mode and without progress bars."""
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    pipe.set_progress_bar_config(disable=True)
    return pipe


def other_prompt(call: Mapping[str, Any]) -> dict[str, Any]:
    """The same call with another prompt: embeddings, class labels or words are exchanged."""
    generator = torch.Generator().manual_seed(2)

    def other(value: Any) -> Any:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return torch.randn(value.shape, generator=generator)
        if isinstance(value, list) and all(isinstance(part, torch.Tensor) for part in value):
            return [other(part) for part in value]
        return value

    changed = {name: other(value) if "embeds" in name else value for name, value in call.items()}
    if call.get("prompt") is not None:
        changed["prompt"] = "a blue square"
    if "class_labels" in call:
        changed["class_labels"] = [label + 2 for label in call["class_labels"]]
    return changed
