"""Front: the place in front of one transformer, and whether our methods hold behind it.

Other caches and compilation as a whole are met before `accelerate` and after it by the same rule:
they are refused, served, or said.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..attention.engine.runtime import AttentionRuntime
from ..caching.engine.hooks import BlockCache
from ..core.neighbours import Neighbours
from ..core.patching import Around, PatchLedger, compiled_as_a_whole, patch_of, unwrapped
from ..errors import UnsupportedError

_WHOLE = (
    "{0} is compiled as a whole, which bakes the block loop into one graph; compile its blocks "
    "instead (pipe.{0}.compile_repeated_blocks()), or use a caching method with target='output' "
    "(as the presets have it), which needs nothing inside"
)


class Front:
    """Stands in front of one transformer.

    Args:
        name: component name.
        transformer: as the pipeline has it: itself, or compiled as a whole.
        pipe: the pipeline, None for a bare transformer.
        caches: whether a caching method is on.
        outside: whether nothing inside the transformer is needed.
        warn: called with one line, and with what kind it is where it is to be shown once.

    Attributes:
        neighbours: what else works on the transformer.
        whole: whether it is compiled as a whole.

    Raises:
        UnsupportedError: the methods cannot work with what is there.
    """

    def __init__(
        self,
        name: str,
        transformer: nn.Module,
        pipe: Any,
        caches: bool,
        outside: bool,
        warn: Callable[..., None],
    ) -> None:
        self._name, self._transformer = name, transformer
        self._pipe = weakref.ref(pipe) if pipe is not None else lambda: None
        self._caches, self._outside, self._warn = caches, outside, warn
        self.whole = compiled_as_a_whole(transformer)
        if self.whole:
            self._check_whole()
        self.neighbours = Neighbours(name, unwrapped(transformer))
        self.meet_other_cache(None)

    def stand(self, around: Around, ledger: PatchLedger) -> None:
        """Take the place in front of all calls."""
        self._ledger = ledger
        self._patch = ledger.intercept(self._transformer, around)
        if not self.whole:
            ledger.guard_compile(self._transformer, self._check_whole)

    def _check_whole(self) -> None:
        if not self._outside:
            raise UnsupportedError(_WHOLE.format(self._name))

    def look(
        self,
        cache: BlockCache | None,
        attention: AttentionRuntime | None,
        kwargs: Mapping[str, Any],
    ) -> None:
        """See, on every call, what was put on the transformer since the last one.

        Args:
            cache: of this transformer, if it has one by now.
            attention: likewise.
            kwargs: of the call.

        Raises:
            UnsupportedError: the methods cannot work with it.
        """
        self.meet_other_cache(attention)
        self.neighbours.called(kwargs)
        if self._patch.compiled is None and not self._patch.in_graph:
            return
        self._check_whole()
        if cache is not None:
            cache.compiled_as_a_whole()
        if self._patch.in_graph:
            self._move()

    def _move(self) -> None:
        """Stand in front of `torch.compile(transformer)` where the pipeline has it now."""
        patch = self._patch
        wrapper = getattr(self._pipe(), self._name, None)
        found = isinstance(wrapper, nn.Module) and unwrapped(wrapper) is patch.module
        if wrapper is None or not found or wrapper is patch.module or patch_of(wrapper) is not None:
            self._warn(
                f"{self._name} is part of a larger compiled graph: its calls leave the graph and "
                "run eagerly; compile it before accelerate()"
            )
            return
        self._ledger.forget(patch)
        self._patch = self._ledger.intercept(wrapper, patch.around)

    def meet_other_cache(self, attention: AttentionRuntime | None) -> None:
        """Refuse to be the second cache; attention methods go together with one.

        Raises:
            UnsupportedError: there are two.
        """
        other = self.neighbours.cache()
        if attention is not None:
            attention.beside_a_cache = other is not None
        if other is None:
            return
        if self._caches:
            raise UnsupportedError(
                f"{self._name} has another cache on, {other.name}: each would skip what the other "
                f"takes for computed; take it off ({other.way_off}), or restore ditaccel"
            )
        self._warn(
            f"{self._name} has another cache on, {other.name}: what it skips is not seen here, and "
            "counts as computed"
        )

    def say_missed(self, missed: int) -> None:
        """Say that attention layers were left out by something that was not said yet."""
        if not missed or self.neighbours.skips_layers or self.neighbours.cache() is not None:
            return
        self._warn(
            f"{self._name}: {missed} attention layers were left out of a call by "
            f"{self.neighbours.culprit()}; what is left out is not seen here, and counts as "
            "computed",
            once=f"{self._name}: left out",
        )
