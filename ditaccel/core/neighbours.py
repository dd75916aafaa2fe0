"""What else works on a transformer: another cache, a compiler, a forward of somebody's own.

All of it can be put on before `accelerate` or after, so it is looked at on every call, cheaply.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from ._compat import forward_is_hooked, is_skipped_layer, skipping_hook

# Caches of diffusers that leave outputs as they are.
_LOSSLESS = ("TextKVCacheConfig",)


@dataclass(frozen=True)
class OtherCache:
    """A cache that is not ours.

    Attributes:
        name: for people.
        way_off: what takes it off again.
    """

    name: str
    way_off: str


class Neighbours:
    """Looks at what else works on one transformer.

    Args:
        name: component name.
        transformer: the transformer.
    """

    def __init__(self, name: str, transformer: nn.Module) -> None:
        self._name, self._transformer = name, transformer
        self._modules: list[nn.Module] = []
        self._asked = ""
        self.refresh()

    def refresh(self) -> None:
        """Take note of the modules there are; they change when adapters are put on."""
        self._modules = list(self._transformer.modules())

    def cache(self) -> OtherCache | None:
        """Another cache that skips computation of this transformer, if one is on."""
        own = vars(self._transformer)
        config = own.get("_cache_config")
        if config is not None and type(config).__name__ not in _LOSSLESS:
            way_off = f"pipe.{self._name}.disable_cache()"
            return OtherCache(f"diffusers' {type(config).__name__.removesuffix('Config')}", way_off)
        if own.get("_is_cached") and "_context_manager" in own:
            return OtherCache("cache-dit", "cache_dit.disable_cache(pipe)")
        for module in self._modules:
            hook = skipping_hook(module)
            if hook is not None:
                return OtherCache(f"a hook of its own ({hook})", "remove that hook")
        return None

    def called(self, kwargs: Mapping[str, Any]) -> None:
        """Take note of what a call of the transformer asks to leave out."""
        asked = [key for key, value in kwargs.items() if "skip" in key and value is not None]
        self._asked = asked[0] if asked else ""

    @property
    def skips_layers(self) -> bool:
        """Whether layers are left out of this call because a guidance asks for it."""
        return bool(self._asked) or any(map(is_skipped_layer, self._modules))

    def culprit(self) -> str:
        """What leaves something out that `accelerate` found, by what there is to see."""
        if self._asked:
            return f"its argument {self._asked!r} (a layer-skipping guidance)"
        if self.skips_layers:
            return "hooks of a layer-skipping guidance"
        owner = _stranger(self._transformer)
        if owner:
            return f"the forward that {owner} has put in place of its own"
        return "its own forward"

    def why_left_out(self, blocks: Iterable[nn.Module], ran: int) -> str:
        """Why blocks did not run.

        Args:
            blocks: those that stood in the transformer at `accelerate`, in their order.
            ran: how many ran.
        """
        patched = list(blocks)
        there = {id(module) for module in self._transformer.modules()}
        gone = sum(id(block) not in there for block in patched)
        if gone:
            return f"{gone} of its {len(patched)} blocks were taken out or exchanged"
        left_out = f"{len(patched) - ran} of {len(patched)} blocks were left out"
        return f"{left_out} by {self.culprit()}"


def _stranger(transformer: nn.Module) -> str:
    """The module that a transformer's `forward` comes from, "" for its class's own or a hooked one.

    Scripts for other caches put theirs into the class, or on the instance.
    """
    kind = type(transformer)
    forward: Any = vars(transformer).get("forward")
    if forward is None or forward_is_hooked(transformer):
        forward = kind.forward
    owner = getattr(forward, "__module__", None) or type(forward).__module__
    return "" if owner in {base.__module__ for base in kind.__mro__} else owner
