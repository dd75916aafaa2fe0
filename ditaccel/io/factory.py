"""A user's own function that makes the pipeline a command works on.

Named `module:function` or `file.py:function`, it can do all that Python can and a command line
cannot: load a LoRA, offload, quantise, compile, replace the scheduler, take another class.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import importlib.util
import inspect
import sys
import traceback
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from ..core.kinds import hide_progress, is_pipeline
from ..core.patching import is_patched
from ..errors import UsageError
from . import given
from .models import execution_device, line_of, quiet_loading

# What a function is handed, by name, as far as it takes it.
_OFFERED = ("model", "device", "dtype")


@dataclass(frozen=True)
class Opened:
    """A pipeline, ready to be called.

    Attributes:
        pipe: the pipeline.
        call: arguments of every call that its factory gave, empty for a model's own pipeline.
    """

    pipe: Any
    call: dict[str, Any] = field(default_factory=dict)

    @property
    def dtype(self) -> str:
        """Name of the dtype that its denoiser computes in, as far as its parameters say."""
        for name in ("transformer", "unet"):
            part = getattr(self.pipe, name, None)
            if isinstance(part, torch.nn.Module):
                return str(getattr(part, "dtype", torch.float32)).removeprefix("torch.")
        return str(getattr(self.pipe, "dtype", torch.float32)).removeprefix("torch.")


@dataclass(frozen=True)
class Factory:
    """A user's function that makes a pipeline.

    It may take any of the arguments `model` (as given on the command line), `device` (such as
    `cuda:0`) and `dtype` (a torch.dtype, or None for its own choice), and returns the pipeline,
    placed on its device, or a pair of the pipeline and a mapping of arguments for every call.

    Attributes:
        reference: `module:function`, or the absolute path of a file with `:function`.
        function: the function.
        source: hash over the file it is written in.
    """

    reference: str
    function: Callable[..., Any]
    source: str

    @property
    def identity(self) -> str:
        """What tells its results from another's: name and source, wherever the file lies."""
        return f"{Path(self.reference).name}@{self.source}"

    def takes(self, name: str) -> bool:
        """Whether the function wants an argument."""
        found = inspect.signature(self.function).parameters.values()
        return any(p.name == name or p.kind is inspect.Parameter.VAR_KEYWORD for p in found)

    def pipeline_class(self) -> type | None:
        """The class that the function's annotation says it returns, None where there is none."""
        try:
            found = typing.get_type_hints(self.function).get("return")
        except (NameError, TypeError, AttributeError):
            return None
        options = (found, *typing.get_args(found))
        for option in options:
            if is_pipeline(option):
                found_class: type = option
                return found_class
        return None

    def make(self, model: str, device: str, dtype: torch.dtype | None) -> Opened:
        """Call the function.

        Args:
            model: as given.
            device: where the pipeline shall run.
            dtype: to load in, None for the function's own choice.

        Raises:
            UsageError: it raises, or returns no pipeline that can be worked with; one line.
        """
        offered = {"model": model, "device": device, "dtype": dtype}
        given = {name: value for name, value in offered.items() if self.takes(name)}
        try:
            with quiet_loading():
                made = self.function(**given)
        except (Exception, SystemExit) as error:
            raise self._error(f"raised {_told(error, self.function)}") from error
        pipe, call = made if isinstance(made, tuple) and len(made) == 2 else (made, {})
        if not callable(pipe) or not isinstance(getattr(pipe, "components", None), dict):
            raise self._error(
                f"returned {type(pipe).__name__}, which is not a diffusers pipeline; return the "
                "pipeline, or (pipeline, arguments of every call)"
            )
        if not isinstance(call, Mapping) or not all(isinstance(key, str) for key in call):
            raise self._error(
                f"returned {type(call).__name__} next to the pipeline; return a dictionary of "
                "arguments of the pipeline call"
            )
        self._check(pipe, device)
        hide_progress(pipe)
        return Opened(pipe, dict(call))

    def _check(self, pipe: Any, device: str) -> None:
        if is_patched(p for p in pipe.components.values() if isinstance(p, torch.nn.Module)):
            raise self._error(
                "returned an accelerated pipeline; return the dense one, and name the method as "
                "the config"
            )
        where = execution_device(pipe)
        if where.type != torch.device(device).type:
            raise self._error(
                f"returned a pipeline that runs on {where}, and the device is {device}; let the "
                "function take `device` and put it there"
            )

    def _error(self, what: str) -> UsageError:
        return UsageError(f"{self.reference} {what}", "pipeline")


def _told(error: BaseException, function: Callable[..., Any] | None = None) -> str:
    """An error as `Type: line (file, line n)`, the place being the last one in the user's file."""
    own = None if function is None else inspect.getsourcefile(inspect.unwrap(function))
    frames = traceback.extract_tb(error.__traceback__)
    places = [f for f in frames if own is not None and f.filename == own]
    where = f" ({Path(places[-1].filename).name}, line {places[-1].lineno})" if places else ""
    return f"{type(error).__name__}: {line_of(error)}{where}"


def _from_file(path: Path, shown: str) -> ModuleType:
    name = f"_ditaccel_pipeline_{hashlib.sha256(str(path).encode()).hexdigest()[:16]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise UsageError(f"{shown}: {path} is not a Python file", "pipeline")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look for it there
    _look_in(path.parent)
    try:
        with quiet_loading():
            spec.loader.exec_module(module)
    except (Exception, SystemExit) as error:
        del sys.modules[name]
        raise UsageError(f"{shown}: {path} raised {_told(error)}", "pipeline") from error
    return module


def _look_in(folder: Path) -> None:
    """Let a user's modules be found, behind all others: none of theirs may hide another."""
    if str(folder) not in sys.path:
        sys.path.append(str(folder))


def _from_name(name: str, shown: str) -> ModuleType:
    _look_in(Path.cwd())
    try:
        with quiet_loading():
            return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if missing == name or name.startswith(f"{missing}."):
            raise UsageError(
                f"{shown}: there is no module {missing!r} on Python's path or in "
                f"{Path.cwd()}; for a file, give FILE.py:FUNCTION",
                "pipeline",
            ) from None
        raise UsageError(f"{shown}: {name} raised {_told(error)}", "pipeline") from error
    except (Exception, SystemExit) as error:
        raise UsageError(f"{shown}: {name} raised {_told(error)}", "pipeline") from error


def read_factory(reference: str) -> Factory:
    """Import the function that a text such as `module:function` names.

    Args:
        reference: `module:function` or `file.py:function`; modules are looked for on Python's path
            and in the working folder, files may import what lies beside them.

    Raises:
        UsageError: no such module, file or function, or the import fails; one line.
    """
    shown = f"{reference:.200}"
    place, _, name = reference.rpartition(":")
    if not place or not all(part.isidentifier() for part in name.split(".")):
        raise UsageError(f"{shown}: give MODULE:FUNCTION or FILE.py:FUNCTION", "pipeline")
    if place.endswith(".py"):
        path = given.path(place).resolve()
        if not path.is_file():
            raise UsageError(f"{shown}: there is no file {place:.200}", "pipeline")
        module, reference = _from_file(path, shown), f"{path}:{name}"
    elif all(part.isidentifier() for part in place.split(".")):
        module = _from_name(place, shown)
    else:
        raise UsageError(
            f"{shown}: {place:.200} is neither a module's name nor a .py file",
            "pipeline",
        )
    function: Any = module
    for part in name.split("."):
        if not hasattr(function, part):
            known = [k for k, v in vars(module).items() if callable(v) and not k.startswith("_")]
            raise UsageError(f"{shown}: it has no {part!r}{given.suggest(part, known)}", "pipeline")
        function = getattr(function, part)
    if not callable(function):
        raise UsageError(
            f"{shown}: {name} is {type(function).__name__}, not a function", "pipeline"
        )
    needed = [
        p.name
        for p in inspect.signature(function).parameters.values()
        if p.default is inspect.Parameter.empty
        and p.kind not in (inspect.Parameter.VAR_KEYWORD, inspect.Parameter.VAR_POSITIONAL)
        and (p.name not in _OFFERED or p.kind is p.POSITIONAL_ONLY)
    ]
    if needed:
        raise UsageError(
            f"{shown}: the function needs {needed[0]!r}; it is given `model`, `device` "
            "and `dtype` by name, as far as it takes them",
            "pipeline",
        )
    return Factory(reference, function, _source_hash(module, function))


def _source_hash(module: ModuleType, function: Any) -> str:
    """Over the named module's file and, where that is another one, the function's."""
    files = {getattr(module, "__file__", None)}
    with contextlib.suppress(TypeError):
        files.add(inspect.getsourcefile(inspect.unwrap(function)))
    digest = hashlib.sha256()
    for path in sorted(f for f in files if f):
        try:
            digest.update(Path(path).read_bytes())
        except OSError:
            digest.update(path.encode())
    return digest.hexdigest()[:16]
