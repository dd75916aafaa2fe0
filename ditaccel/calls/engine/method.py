"""CallMethod: what every call method comes down to.

A call method carries out the calls of one transformer, behind a cache: a call that a cache
leaves out never reaches it. It may give the transformer other arguments, change what runs inside,
or answer without running it. State is one per denoising loop, and freed with the last step.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import nn

from ...caching.engine.policy import CachePolicy
from ...config import CallConfig
from ...config.checks import made
from ...core.denoising.per_loop import PerLoop
from ...core.denoising.tracker import DenoisingStep
from ...core.patching import PatchLedger
from ...pipelines import FamilyAdapter


@dataclass(frozen=True)
class Site:
    """The transformer that a method is put on.

    Attributes:
        name: component name.
        transformer: the module, unwrapped.
        adapter: what is known of it.
        warn: called with one line when something needs the user's eye.
    """

    name: str
    transformer: nn.Module
    adapter: FamilyAdapter
    warn: Callable[..., None]


@dataclass(frozen=True)
class TransformerCall:
    """One call of the transformer.

    Attributes:
        step: where in its loop it is.
        inner: what computes the transformer.
        args: of the call.
        kwargs: of the call.
        named: all of these by name.
    """

    step: DenoisingStep
    inner: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    named: Mapping[str, Any]

    def dense(self) -> Any:
        """The call as it came."""
        return self.inner(*self.args, **self.kwargs)

    def changed(self, changes: Mapping[str, Any]) -> Any:
        """The call with some of its arguments, by name, exchanged."""
        return self.inner(**{**self.named, **changes})


@dataclass(eq=False)
class CallLog:
    """The calls of one transformer since `accelerate`.

    Attributes:
        transformer: its component name.
        method: name of the method.
        calls: that were seen.
        changed: those that were not computed as they came.
        share: sum over all calls of what was computed of them: of tokens, or of whole calls.
        what: what `share` is a share of, and what became of it, for people.
        note: a line about the newest run, empty where there is none.
    """

    transformer: str
    method: str
    what: str = "of the tokens were computed"
    calls: int = 0
    changed: int = 0
    share: float = 0.0
    note: str = ""

    def add(self, changed: bool, share: float = 1.0) -> None:
        """Book one call."""
        self.calls += 1
        self.changed += changed
        self.share += share

    def headline(self) -> str:
        """One line."""
        if not self.changed:
            line = f"{self.transformer}: {self.method} changed none of {self.calls} calls"
        else:
            share = 100 * self.share / self.calls
            line = (
                f"{self.transformer}: {self.method} changed {self.changed} of {self.calls} calls; "
                f"{share:.0f} % {self.what}"
            )
        return f"{line}; {self.note}" if self.note else line


class CallMethod(PerLoop):
    """Carries out the calls of one transformer.

    Attributes:
        outside: whether nothing inside the transformer is needed.
        log: of the calls.
        site: where it is, from `attach` on.
        changed: whether a call of this generation was not computed as it came.
    """

    of_a_loop: ClassVar[tuple[str, ...]] = ("_states", "changed")
    of_a_call: ClassVar[str] = "_now"
    outside: ClassVar[bool] = False
    log: CallLog
    site: Site
    _now: Any = None

    def __init__(self) -> None:
        self._fresh()

    def _fresh(self) -> None:
        self._states: dict[Any, Any] = {}  # by guidance branch, or what begins with it
        self.changed = False

    def check_cache(self, policy: CachePolicy, name: str) -> None:
        """Refuse a cache that this method cannot work behind; by default any may be on.

        Args:
            policy: of the cache.
            name: of the caching method.

        Raises:
            ConfigError: it cannot.
        """

    @abstractmethod
    def attach(self, site: Site, ledger: PatchLedger) -> None:
        """Get ready for a transformer; whatever changes on it is undone by the ledger.

        Raises:
            UnsupportedError: the method cannot be applied to it.
        """

    def begin_generation(self, step: DenoisingStep) -> None:
        """Check what can change between generations; `step` is the first one."""

    def nothing_changed(self) -> str:
        """Why a whole generation was computed as it came; empty where that was asked for."""
        return ""

    @abstractmethod
    def carry_out(self, call: TransformerCall) -> Any:
        """What the transformer returns for a call."""

    def run(self, call: TransformerCall) -> Any:
        """Carry a call out."""
        try:
            return self.carry_out(call)
        finally:
            self._now = None

    def finish(self, step: DenoisingStep) -> None:
        """Free the state of a branch behind its last call, and warn if nothing was gained.

        Args:
            step: of the call that is over, whether it was carried out or a cache left it out.
        """
        if not step.is_last:
            return
        why = "" if self.changed else self.nothing_changed()
        self._states = {k: s for k, s in self._states.items() if _branch_of(k) != step.branch}
        if why:
            self.site.warn(f"{self.site.name}: {why}")


def _branch_of(key: Any) -> Any:
    return key[0] if isinstance(key, tuple) else key


def call_method_of(config: CallConfig) -> CallMethod:
    """What carries out a method's config.

    Raises:
        ConfigError: its `call_method()` raises something, or returns something else.
    """
    # (mypy takes no abstract class for `type[T]`)
    return made(config, "call_method", CallMethod)  # type: ignore[type-abstract]
