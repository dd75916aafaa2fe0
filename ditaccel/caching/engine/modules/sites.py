"""The modules in a transformer's blocks whose outputs can be forecast."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import nn

from ....pipelines import submodule
from ..blocks import Block


@dataclass(frozen=True)
class Site:
    """A module in a block that can rest.

    Attributes:
        name: its path in the transformer, such as `transformer_blocks.3.attn1`.
        kind: what it does (`BlockContract.kind`).
        block: number of its block, in the order in which they run.
        module: the module.
        cost: its share of the cost of all blocks (`Blocks.total_cost`), which sites make up.
        feeds: names and kinds of the modules of its block, of one that only feeds those and rests
            when all of them do; empty where its own output is forecast.
    """

    name: str
    kind: str
    block: int
    module: nn.Module
    cost: float
    feeds: tuple[tuple[str, str], ...] = ()


def sites_of(blocks: Sequence[Block]) -> list[Site]:
    """All modules of the blocks that can rest, in the order of the blocks."""
    found = []
    for index, block in enumerate(blocks):
        own = _modules(block, block.contract.forecast_modules)
        idle = _modules(block, block.contract.idle_modules)
        kinds = {path: block.contract.kind(path) for path in (*own, *idle)}
        feeds = tuple((f"{block.name}.{path}", kinds[path]) for path in own)
        for path, module in (*own.items(), *idle.items()):
            parts = (f"{block.name}.{path}", kinds[path], index, module)
            found.append(Site(*parts, _parameters(module), feeds if path in idle else ()))
    scale = sum(block.cost for block in blocks) / (sum(site.cost for site in found) or 1)
    return [
        Site(site.name, site.kind, site.block, site.module, site.cost * scale, site.feeds)
        for site in found
    ]


def _modules(block: Block, paths: Sequence[str]) -> dict[str, nn.Module]:
    """The modules at these paths, each once, without those that a block does not have."""
    found = {path: submodule(block.module, path) for path in paths}
    return {path: module for path, module in found.items() if module is not None}


def _parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())
