"""Transformers of no known family: what can be told from the module, and what a dry run adds.

`recognise` looks at the signature and the block lists. It is enough for methods that forecast what
the transformer returns, since those touch nothing inside of it. Everything else needs to know how
blocks are called and in which order, which `Watch` sees in one dense run.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

import torch
from torch import nn

from .adapter import (
    AttentionContract,
    BlockContract,
    FamilyAdapter,
    TextSide,
    adaptive_presets,
    packed_tokens,
    patch_tokens,
)

TIMESTEPS = ("timestep", "timesteps", "t")
_SAMPLES = ("hidden_states", "x", "sample", "latents")
_TEXT = re.compile(r"encoder|context|text|txt|caption|cap_|prompt")
_FEED_FORWARD = re.compile(r"feed_?forward|mlp|ffn", re.IGNORECASE)


class NotRecognisedError(ValueError):
    """Says what could not be found."""


def block_lists(transformer: nn.Module) -> dict[str, nn.ModuleList]:
    """Lists of two and more modules of one class that stand directly in a transformer."""
    return {
        name: part
        for name, part in transformer.named_children()
        if isinstance(part, nn.ModuleList)
        and len(part) > 1
        and len({type(each) for each in part}) == 1
        and next(part[0].parameters(), None) is not None
    }


def recognise(transformer: nn.Module) -> FamilyAdapter:
    """An adapter from the module alone; its blocks are those that a dry run has to watch.

    Raises:
        NotRecognisedError: it takes no timestep or no latents that could be named.
    """
    kind = type(transformer).__name__
    names = list(inspect.signature(transformer.forward).parameters)
    timestep = next((n for n in TIMESTEPS if n in names), None)
    sample = next((n for n in _SAMPLES if n in names), None)
    if timestep is None or sample is None:
        what, known = ("timestep", TIMESTEPS) if timestep is None else ("latents", _SAMPLES)
        raise NotRecognisedError(
            f"{kind}.forward has no argument for the {what} (looked for {', '.join(known)}; it has "
            f"{', '.join(names)})"
        )
    return FamilyAdapter(
        name=f"unknown ({kind})",
        transformers=(kind,),
        blocks=tuple(BlockContract(name) for name in block_lists(transformer)),
        presets=adaptive_presets(),
        timestep=timestep,
        sample=sample,
        provisional=True,
    )


@dataclass
class BlockCall:
    """One call of a block, as far as it matters.

    Attributes:
        container: of the block.
        index: in its container.
        shapes: of the tensors it was given, by argument.
        links: argument -> place in what the block before returned, where it is that very tensor.
        outputs: shapes of what it returned, None for what is no tensor.
        bare: whether it returned a tensor and not several things.
    """

    container: str
    index: int
    shapes: dict[str, tuple[int, ...]]
    links: dict[str, int]
    outputs: list[tuple[int, ...] | None]
    bare: bool


@dataclass
class Watch:
    """Sees the blocks and attention modules of one transformer in a dense run.

    Args:
        transformer: the module.
        adapter: from `recognise`.
    """

    transformer: nn.Module
    adapter: FamilyAdapter
    calls: list[BlockCall] = field(default_factory=list)
    _before: list[Any] = field(default_factory=list)
    _attention: dict[str, dict[str, bool]] = field(default_factory=dict)

    def modules(self) -> Iterator[tuple[nn.Module, Callable[..., Any]]]:
        """What to watch: modules, each with an `around(inner, args, kwargs)`."""
        for contract in self.adapter.blocks:
            for index, block in enumerate(getattr(self.transformer, contract.container)):
                yield block, self._around_block(contract.container, index, block)
                for path, module in block.named_modules():
                    if path and hasattr(module, "processor"):
                        yield module, self._around_attention(contract.container, path, module)

    def _around_block(self, container: str, index: int, block: nn.Module) -> Callable[..., Any]:
        names = list(inspect.signature(block.forward).parameters)

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            tensors = {n: x for n, x in given.items() if isinstance(x, torch.Tensor)}
            links = {
                n: place
                for n, x in tensors.items()
                for place, old in enumerate(self._before)
                if x is old
            }
            shapes = {n: tuple(x.shape) for n, x in tensors.items()}
            self._before = []
            output = inner(*args, **kwargs)
            bare = isinstance(output, torch.Tensor)
            self._before = [output] if bare else list(output)
            outputs = [tuple(x.shape) if torch.is_tensor(x) else None for x in self._before]
            self.calls.append(BlockCall(container, index, shapes, links, outputs, bare))
            return output

        return around

    def _around_attention(self, container: str, path: str, module: nn.Module) -> Callable[..., Any]:
        names = list(inspect.signature(module.forward).parameters)

        def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
            given = {**dict(zip(names, args, strict=False)), **kwargs}
            output = inner(*args, **kwargs)
            other = given.get("encoder_hidden_states")
            # joint attention returns both streams, cross-attention only the one that asks
            crosses = other is not None and isinstance(output, torch.Tensor)
            paths = self._attention.setdefault(container, {})
            paths[path] = paths.get(path, False) or crosses
            return output

        return around

    def learnt(self) -> FamilyAdapter:
        """The adapter with what was seen.

        Raises:
            NotRecognisedError: the blocks are no chain; with what is missing.
        """
        trunk = self._trunk()
        blocks = tuple(self._contract(container) for container in trunk)
        attention = tuple(
            AttentionContract(container, path)
            for container in (*self._sides(trunk, blocks[0].hidden), *trunk)
            for path, crosses in self._attention.get(container, {}).items()
            if not crosses
        )
        return replace(self.adapter, blocks=blocks, attention=attention, provisional=False)

    def _sides(self, trunk: list[str], hidden: str) -> list[str]:
        """Containers beside the trunk that attend over its tokens (VACE's hints), as they run.

        Others attend over something else: text, or some of the tokens.
        """
        first: dict[str, BlockCall] = {}
        for call in self.calls:
            first.setdefault(call.container, call)
        tokens = first[trunk[0]].shapes[hidden]
        return [c for c in first if c not in trunk and tokens in first[c].shapes.values()]

    def _trunk(self) -> list[str]:
        """The containers that pass the hidden states on to each other, up to the last one."""
        kind = type(self.transformer).__name__
        if not self.calls:
            raise NotRecognisedError(
                f"{kind} has no list of blocks of one class directly in it, or none of them ran"
            )
        runs: list[list[BlockCall]] = []
        for call in self.calls:
            if not runs or runs[-1][0].container != call.container:
                runs.append([])
            runs[-1].append(call)
        ran = [run[0].container for run in runs]
        if ran.count(ran[-1]) > 1:
            raise NotRecognisedError(
                f"the blocks of {kind} do not run list by list ({', '.join(ran[:4])}, …)"
            )
        trunk = [runs[-1]]
        for run in reversed(runs[:-1]):
            if ran.count(run[0].container) > 1 or not _leads_to(run[-1], trunk[0][0]):
                break
            trunk.insert(0, run)
        for run in trunk:
            container = run[0].container
            if [c.index for c in run] != list(range(len(getattr(self.transformer, container)))):
                raise NotRecognisedError(f"the blocks {container} do not run once each, in order")
        return [run[0].container for run in trunk]

    def _contract(self, container: str) -> BlockContract:
        calls = [c for c in self.calls if c.container == container]
        roles: dict[str, int] = {}
        for before, call in pairwise(calls):
            links = call.links or _by_shape(before, call)
            if not links or roles not in ({}, links):
                raise NotRecognisedError(
                    f"{container}.{call.index} does not take what {container}.{before.index} "
                    "returned"
                )
            roles = links
        hidden = [n for n in roles if not _TEXT.search(n)]
        text = [n for n in roles if _TEXT.search(n)]
        if len(hidden) != 1 or len(text) > 1:
            raise NotRecognisedError(
                f"which of {', '.join(roles)} are the image or video tokens of {container}"
            )
        places = {roles[hidden[0]]: "hidden", **{roles[n]: "encoder" for n in text}}
        returned = len(calls[0].outputs)
        if sorted(places) != list(range(returned)):
            raise NotRecognisedError(
                f"{container} returns {returned} things, of which {len(places)} go on to the next "
                "block"
            )
        return BlockContract(
            container,
            hidden=hidden[0],
            encoder=text[0] if text else None,
            returns=tuple(places[i] for i in range(returned)),
            forecast_modules=self._forecast_modules(container),
        )

    def _forecast_modules(self, container: str) -> tuple[str, ...]:
        """Direct children of the blocks that are attention or an MLP."""
        block = getattr(self.transformer, container)[0]
        seen = self._attention.get(container, {})
        return tuple(
            name
            for name, part in block.named_children()
            if name in seen or _FEED_FORWARD.search(type(part).__name__) or name == "ff"
        )


def _leads_to(before: BlockCall, after: BlockCall) -> bool:
    """Whether one block's hidden states go on into the next one."""
    if after.links:
        return True
    lengths = [shape[1] for shape in before.outputs if shape is not None and len(shape) == 3]
    # both streams joined into one sequence (Flux.2, Chroma)
    joined = sum(lengths) if len(lengths) == 2 else None
    return any(len(s) == 3 and s[1] == joined for s in after.shapes.values())


def _by_shape(before: BlockCall, call: BlockCall) -> dict[str, int]:
    """Links where something was added to the hidden states between two blocks (ControlNet)."""
    found: dict[str, int] = {}
    for name, shape in call.shapes.items():
        places = [i for i, out in enumerate(before.outputs) if out == shape and len(shape) == 3]
        if len(places) == 1 and name in before.shapes and before.shapes[name] == shape:
            found[name] = places[0]
    return found


def text_side(moved: torch.Tensor) -> tuple[TextSide, int]:
    """Where text stands in a joint sequence, by the rows that other latents move.

    Args:
        moved: bool `(L,)`, of the first layer's queries.

    Returns:
        `none`, `front` or `back`, and the number of image or video tokens.

    Raises:
        NotRecognisedError: the moved rows are not one run at either end.
    """
    tokens, length = int(moved.sum()), moved.numel()
    if tokens == length:
        return "none", tokens
    if tokens and bool(moved[length - tokens :].all()):
        return "front", tokens
    if tokens and bool(moved[:tokens].all()):
        return "back", tokens
    raise NotRecognisedError("where text tokens stand in the sequence")


def token_count(
    config: Any, shape: tuple[int, ...], tokens: int
) -> Callable[[Any, tuple[int, ...]], int] | None:
    """The rule that gives the token count seen, None where no known one does."""
    # (CogVideoX puts frames in front of channels, where a rule could hit by accident)
    for rule, channels in ((packed_tokens, len(shape) - 1), (patch_tokens, 1)):
        try:
            fits = getattr(config, "in_channels", shape[channels]) == shape[channels]
            if fits and rule(config, shape) == tokens:
                return rule
        except (AttributeError, IndexError, TypeError, ZeroDivisionError):
            continue  # made for another kind of latents
    return None
