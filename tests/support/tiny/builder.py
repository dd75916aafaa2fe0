"""How tiny pipelines are built and registered, and what tests must know of each."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

from ditaccel.core.kinds import hide_progress

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
        masked: whether attention is handed a mask that leaves keys out.
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


def tiny_family(**facts: Any) -> Callable[[Callable[[], Tiny]], Callable[[], Tiny]]:
    """Register the decorated function under its name; its file names the family.

    Args:
        **facts: attributes of `TinyFamily`.
    """

    def register(make: Callable[[], Tiny]) -> Callable[[], Tiny]:
        name = make.__name__
        assert name not in REGISTRY, f"two tiny pipelines are called {name}"
        REGISTRY[name] = TinyFamily(make, make.__module__.rpartition(".")[2], **facts)
        return make

    return register


def offered(family: str) -> bool:
    """Whether the installed diffusers has a transformer of a family: an older one lacks some."""
    import diffusers
    from ditaccel.pipelines import adapters

    return not set(adapters()[family].transformers).isdisjoint(dir(diffusers))


def embeds_source() -> Callable[..., torch.Tensor]:
    """Seed the weights, and return a source of embeddings."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    return lambda *shape: torch.randn(*shape, generator=generator)


def filled(module: torch.nn.Module) -> None:
    """Give weights that begin with zeros, or that diffusers leaves empty, random values.

    Args:
        module: whose parameters are looked at.
    """
    with torch.no_grad():
        for number, weight in enumerate(module.parameters()):
            if not bool(weight.any()) or not bool(torch.isfinite(weight).all()):
                # each from a source of its own: what is empty may hold anything
                weight.normal_(std=0.2, generator=torch.Generator().manual_seed(number))


def pipeline_of(cls: type, transformer: Any, scheduler: Any, **parts: Any) -> Any:
    """A pipeline in evaluation mode, without progress bars.

    Args:
        cls: of the pipeline.
        transformer: its transformer.
        scheduler: its scheduler.
        **parts: other parts and options. Parts that are not given and have no default are None:
            text encoders and tokenizers, whose embeddings the call brings along.
    """
    given = {**parts, "transformer": transformer, "scheduler": scheduler}
    absent = {
        name: None
        for name, parameter in inspect.signature(cls).parameters.items()
        if parameter.default is parameter.empty and parameter.kind != parameter.VAR_KEYWORD
    }
    return _ready(cls(**{**absent, **given}))


def modular_of(blocks: Any, **parts: Any) -> Any:
    """A pipeline of diffusers' modular blocks, in evaluation mode and without progress bars.

    Args:
        blocks: an instance of a class of blocks: the denoising ones are enough, where the call
            brings along what those before them would give.
        **parts: components by name.
    """
    pipe = blocks.init_pipeline()
    pipe.update_components(**parts)
    return _ready(pipe)


def _ready(pipe: Any) -> Any:
    for part in pipe.components.values():
        if isinstance(part, torch.nn.Module):
            part.eval()
    hide_progress(pipe)
    return pipe
