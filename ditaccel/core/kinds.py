"""The two kinds of pipelines that diffusers has, and what is different between them.

An ordinary pipeline names the arguments of its call in the signature, takes `output_type`, and
returns an object with `images` or `frames`. A modular pipeline is made of blocks: they declare the
arguments and what they leave (`images`, `videos`, `audio`, `latents`, …), and its call returns what
`output` names. All that depends on the kind is in this file.
"""

from __future__ import annotations

import inspect
import logging
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ..errors import DitaccelError, UnsupportedError

# Default of an argument that every call must give.
NEEDED: Any = inspect.Parameter.empty
_PICTURES = ("videos", "images")


def is_modular(pipe: Any) -> bool:
    """Whether a pipeline, or a class of pipelines, is made of blocks."""
    # by name: diffusers need not be loaded
    kind = pipe if inspect.isclass(pipe) else type(pipe)
    return any(base.__name__ == "ModularPipeline" for base in kind.__mro__)


def is_pipeline(kind: Any) -> bool:
    """Whether a value is a class of pipelines that can be made, of either kind."""
    import diffusers

    bases = [diffusers.DiffusionPipeline, getattr(diffusers, "ModularPipeline", None)]
    known = tuple(base for base in bases if base is not None)
    return inspect.isclass(kind) and issubclass(kind, known) and kind not in known


def arguments(pipe: Any) -> dict[str, Any]:
    """What a pipeline's call takes by name, each with its default or `NEEDED`.

    Args:
        pipe: a pipeline, or a class of pipelines (a modular one's blocks are those that its class
            has by default).
    """
    if is_modular(pipe):
        return _inputs(pipe() if inspect.isclass(pipe) else pipe)
    return {
        name: parameter.default
        for name, parameter in _signature(pipe).items()
        if name != "self" and parameter.kind is not inspect.Parameter.VAR_KEYWORD
    }


def takes_any(pipe: Any) -> bool:
    """Whether a pipeline's call takes arguments of any name."""
    if is_modular(pipe):  # it warns of others, and leaves them out
        return False
    return any(p.kind is inspect.Parameter.VAR_KEYWORD for p in _signature(pipe).values())


def _signature(pipe: Any) -> Mapping[str, inspect.Parameter]:
    kind = pipe if inspect.isclass(pipe) else type(pipe)
    return inspect.signature(kind.__call__).parameters


def _inputs(pipe: Any) -> dict[str, Any]:
    """The inputs of a modular pipeline's blocks.

    A block calls an input required that another block in front of it makes; what no block makes out
    of other things has to come from the caller.
    """
    blocks = pipe._blocks
    made: set[str] = set()
    for block in _within(blocks):
        if not getattr(block, "sub_blocks", None):
            own = {given.name for given in block.inputs if given.required}
            made |= {output.name for output in block.intermediate_outputs} - own
    found: dict[str, Any] = {}
    for given in blocks.inputs:
        if given.name is not None:
            needed = given.required and given.default is None and given.name not in made
            found[given.name] = NEEDED if needed else given.default
    return found


def _within(blocks: Any) -> Iterator[Any]:
    """All blocks within blocks."""
    for block in (getattr(blocks, "sub_blocks", None) or {}).values():
        yield block
        yield from _within(block)


def _outputs(pipe: Any) -> list[str]:
    return [output.name for output in pipe._blocks.outputs]


def gives_pictures(pipe: Any) -> bool:
    """Whether a pipeline's call decodes what it has denoised."""
    if is_modular(pipe):
        return any(name in _outputs(pipe) for name in _PICTURES)
    return getattr(pipe, "vae", None) is not None


def decoded(pipe: Any) -> dict[str, Any]:
    """Arguments that make a call give decoded pictures as arrays, for `pictures_of`.

    Raises:
        UnsupportedError: a modular pipeline whose blocks make no pictures.
    """
    if not is_modular(pipe):
        return {"output_type": "np"}
    left = _outputs(pipe)
    name = next((name for name in _PICTURES if name in left), None)
    if name is None:
        raise UnsupportedError(
            f"{type(pipe).__name__} makes no pictures (its blocks leave {', '.join(left)}), and "
            "pictures are what is compared and written; add blocks that decode, or use "
            "ditaccel.accelerate and call it from Python"
        )
    typed = {"output_type": "np"} if "output_type" in _inputs(pipe) else {}
    return {**typed, "output": name}


def denoised(pipe: Any) -> dict[str, Any]:
    """Arguments that make a call give its last latents, undecoded where the pipeline can do that.

    Blocks of a modular pipeline run all the same; what they decode is left out of the result.
    """
    return {"output": "latents"} if is_modular(pipe) else {"output_type": "latent"}


def set_by_us(pipe: Any) -> set[str]:
    """Arguments that whoever compares results sets himself."""
    return {"output_type", "generator"} | ({"output", "state"} if is_modular(pipe) else set())


def pictures_of(pipe: Any, output: Any) -> Any:
    """The pictures, or latents, in what a call with `decoded` or `denoised` returned.

    Returns:
        `(B, H, W, 3)` or `(B, F, H, W, 3)` of a decoded call.

    Raises:
        DitaccelError: there are none.
    """
    if is_modular(pipe):
        value = output
    else:
        value = getattr(output, "frames", None)
        if value is None:
            value = getattr(output, "images", None)
    if value is None:
        raise DitaccelError(f"{type(pipe).__name__} gave neither images nor frames")
    return value


def class_of_part(kind: Any, name: str) -> str:
    """Name of the class that a class of pipelines declares for a part, "" for none."""
    if is_modular(kind):
        declared = kind()._component_specs.get(name)
        found = None if declared is None else declared.type_hint
    else:
        parameter = inspect.signature(kind).parameters.get(name)
        found = None if parameter is None else parameter.annotation
    if found is None or found is inspect.Parameter.empty:
        return ""
    return found.__name__ if inspect.isclass(found) else str(found)


def source_of(pipe: Any) -> str:
    """Folder or Hub id that a pipeline was loaded from, "" where it was made otherwise."""
    if is_modular(pipe):
        return str(getattr(pipe, "_pretrained_model_name_or_path", None) or "")
    return str(getattr(getattr(pipe, "config", None), "_name_or_path", "") or "")


def put_part(pipe: Any, name: str, part: Any) -> None:
    """Give a pipeline another part under a name that it has."""
    if is_modular(pipe):
        pipe.register_components(**{name: part})
    else:
        setattr(pipe, name, part)


def free_hooks(pipe: Any) -> None:
    """Do what a call's last line does, for a call that was left before it."""
    getattr(pipe, "maybe_free_model_hooks", lambda: None)()


@contextmanager
def unlogged() -> Iterator[None]:
    """Let what blocks of a modular pipeline raise be told by whoever catches it, and only there."""
    log = logging.getLogger("diffusers.modular_pipelines.modular_pipeline")
    here = threading.get_ident()

    def others(record: logging.LogRecord) -> bool:
        return record.thread != here

    log.addFilter(others)
    try:
        yield
    finally:
        log.removeFilter(others)


def hide_progress(pipe: Any) -> None:
    """Show no progress bars of a pipeline's own."""
    if is_modular(pipe):  # which tells the outermost blocks alone
        for block in (pipe._blocks, *_within(pipe._blocks)):
            if hasattr(block, "set_progress_bar_config"):
                block.set_progress_bar_config(disable=True)
    elif hasattr(pipe, "set_progress_bar_config"):
        pipe.set_progress_bar_config(disable=True)
