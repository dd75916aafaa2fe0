"""PatchLedger: every change made to a pipeline, undone in reverse order.

A module is patched at one place only, the per-instance attribute that `torch.nn.Module.__call__`
looks at before anything else and where `Module.compile()` leaves the compiled callable. That seam

* keeps `forward`, its signature, hooks, offloading and parameter names as they are;
* lies outside a regionally compiled block: `compile_repeated_blocks(fullgraph=True)` still works;
* is dropped by `Module.__getstate__`: a deepcopy or pickle of a patched module is a dense module.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from ..errors import UsageError

_SEAM = "_compiled_call_impl"

Around = Callable[[Callable[..., Any], tuple[Any, ...], dict[str, Any]], Any]


def _in_graph() -> bool:
    """Whether what is called now becomes part of a compiled graph that begins further out."""
    if torch.compiler.is_compiling():
        return True
    if "torch._dynamo" not in sys.modules:
        return False
    current = getattr(torch._C._dynamo.eval_frame, "get_eval_frame_callback", None)
    return current is not None and callable(current())


class CallPatch:
    """A callable in front of one module; `around(inner, args, kwargs)` decides what runs.

    Attributes:
        owner: the object that installed the patch (found again through `patch_of`).
        in_graph: whether the last call came from a graph that was compiled around the module. Then
            all of it runs eagerly: a graph would leave out what stands in front of blocks.
    """

    in_graph = False

    def __init__(self, module: nn.Module, around: Around, owner: object) -> None:
        self.module = module
        self.around = around
        self.owner = owner
        self.compiled: Callable[..., Any] | None = module.__dict__.get(_SEAM)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if _in_graph():
            return torch.compiler.disable(self.run)(args, kwargs)
        self.in_graph = False
        return self.around(self.compiled or self.module._call_impl, args, kwargs)

    def run(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """One call that came from a graph, outside of it."""
        self.in_graph = True
        return self.around(self.compiled or self.module._call_impl, args, kwargs)

    @property
    def in_place(self) -> bool:
        """Whether the module still calls this patch."""
        return self.module.__dict__.get(_SEAM) is self

    def install(self) -> None:
        """Put the patch in front of what stands there (a later `Module.compile()`)."""
        if not self.in_place:
            self.compiled = self.module.__dict__.get(_SEAM)
            setattr(self.module, _SEAM, self)

    def remove(self) -> None:
        """Leave the module as if the patch had never been there."""
        if not self.in_place:
            return
        if self.compiled is None:
            del self.module.__dict__[_SEAM]
        else:
            setattr(self.module, _SEAM, self.compiled)


class CompileGuard:
    """Stands in front of `Module.compile` of one module, which would take the place of its patch.

    A deepcopy or pickle of the module gets the method of its own class again.

    Args:
        module: the module.
        before: called first; may refuse by raising.
        after: called when the module has been compiled.
    """

    def __init__(
        self, module: nn.Module, before: Callable[[], None], after: Callable[[], None]
    ) -> None:
        self._module, self._before, self._after = module, before, after

    def __call__(self, *args: Any, **kwargs: Any) -> None:
        self._before()
        type(self._module).compile(self._module, *args, **kwargs)
        self._after()

    def install(self) -> None:
        """Take the place of the method."""
        vars(self._module)["compile"] = self

    def remove(self) -> None:
        """Leave the module as if this had never been there."""
        if vars(self._module).get("compile") is self:
            del vars(self._module)["compile"]

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        copied = memo.get(id(self._module), self._module)
        return types.MethodType(type(copied).compile, copied)

    def __reduce__(self) -> Any:
        return getattr, (self._module, "compile")


def _idle(*_: Any) -> None:
    """A hook that does nothing."""


def _idle_hook() -> Any:
    return _idle


class OwnHook:
    """A forward hook of one module, called with what torch gives a hook.

    A deepcopy or pickle of the module has a hook that does nothing in its place.
    """

    def __init__(self, hook: Callable[..., Any]) -> None:
        self._hook = hook

    def __call__(self, *args: Any) -> Any:
        return self._hook(*args)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return _idle

    def __reduce__(self) -> Any:
        return _idle_hook, ()


def patch_of(module: nn.Module) -> CallPatch | None:
    """Return the patch that stands in front of `module`, if any."""
    patch = module.__dict__.get(_SEAM)
    return patch if isinstance(patch, CallPatch) else None


def is_patched(modules: Iterable[nn.Module]) -> bool:
    """Return whether a patch stands in front of these modules or parts of them."""
    return any(patch_of(part) is not None for module in modules for part in module.modules())


def is_compiled(module: nn.Module) -> bool:
    """Return whether `module.compile()` was called on this very module."""
    return module.__dict__.get(_SEAM) is not None and patch_of(module) is None


def unwrapped(module: nn.Module) -> nn.Module:
    """Return the module itself where `torch.compile(module)` has wrapped it."""
    return getattr(module, "_orig_mod", module)


def compiled_as_a_whole(module: nn.Module) -> bool:
    """Return whether all of `module` is one compiled callable, so that nothing in it is patched."""
    return unwrapped(module) is not module or is_compiled(module)


class PatchLedger:
    """The list of changes, in order."""

    def __init__(self, owner: object) -> None:
        self._owner = owner
        self._patches: list[CallPatch] = []
        self._undo: list[Callable[[], None]] = []

    def intercept(self, module: nn.Module, around: Around) -> CallPatch:
        """Put `around` in front of every call of `module`.

        Raises:
            UsageError: a patch of ours is there already.
        """
        if patch_of(module) is not None:
            raise UsageError(
                f"this {type(module).__name__} is accelerated already; call ditaccel.restore() on "
                "the pipeline it was accelerated through first"
            )
        patch = CallPatch(module, around, self._owner)
        patch.install()
        self._patches.append(patch)
        self._undo.append(patch.remove)
        return patch

    def forget(self, patch: CallPatch) -> None:
        """Take one patch away for good."""
        patch.remove()
        self._patches.remove(patch)
        self._undo.remove(patch.remove)

    def guard_compile(self, module: nn.Module, before: Callable[[], None]) -> None:
        """Ask `before` when `module.compile()` is called, and take the front place again after."""
        guard = CompileGuard(module, before, self.reinstall)
        guard.install()
        self._undo.append(guard.remove)

    def on_undo(self, action: Callable[[], None]) -> None:
        """Run `action` when its turn comes in `undo`."""
        self._undo.append(action)

    def reinstall(self) -> None:
        """Take the front place again where `Module.compile()` was called after `intercept`."""
        for patch in self._patches:
            patch.install()

    @property
    def changes(self) -> int:
        """How many there are to undo."""
        return len(self._undo)

    def undo(self, keep: int = 0) -> None:
        """Undo all changes but the first `keep`, the latest first. A second call does nothing."""
        while len(self._undo) > keep:
            self._undo.pop()()
        self._patches = [patch for patch in self._patches if patch.remove in self._undo]
