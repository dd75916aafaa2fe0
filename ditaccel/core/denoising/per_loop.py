"""What belongs to one denoising loop, and is exchanged when another loop's call comes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar


class PerLoop(ABC):
    """Base of what carries methods out on a transformer, for one loop at a time.

    Attributes:
        of_a_loop: names of the attributes that belong to a loop; `_fresh` resets them.
        of_a_call: name of the one that holds the transformer call in progress.
    """

    of_a_loop: ClassVar[tuple[str, ...]]
    of_a_call: ClassVar[str]

    @abstractmethod
    def _fresh(self) -> None:
        """Begin with nothing, and leave what `kept` has given alone."""

    def clear(self) -> None:
        """Forget everything: a new generation begins, or the last one broke off."""
        self.resume(None)
        self._fresh()

    def kept(self) -> dict[str, Any]:
        """What is remembered of the present loop, for `use`."""
        return {name: getattr(self, name) for name in self.of_a_loop}

    def use(self, memory: dict[str, Any] | None) -> None:
        """Go on with what `kept` gave for a loop, or with nothing."""
        self.resume(None)
        self._fresh()
        for name, value in (memory or {}).items():
            setattr(self, name, value)

    def pause(self) -> Any:
        """Leave the transformer alone until `resume` is given what this returns."""
        call = getattr(self, self.of_a_call)
        setattr(self, self.of_a_call, None)
        return call

    def resume(self, call: Any) -> None:
        """Go on with the call that was paused."""
        setattr(self, self.of_a_call, call)
