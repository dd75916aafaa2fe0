"""A model on disk or on the Hub: its folder, its `sample.json`, its prompts."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from ..core.kinds import arguments, hide_progress, source_of
from ..errors import UsageError
from . import given
from .indexes import MODULAR, Index, index_file

SAMPLE_FILE = "sample.json"
_HUB_ID = re.compile(r"^[\w.-]+/[\w.-]+$")


@dataclass(frozen=True)
class Sheet:
    """What a model folder says about itself (all optional).

    Attributes:
        family: `wan`, `flux`, `dit`, … or "" where the transformer's class decides.
        task: `text-to-video`, `text-to-image` or `class-to-image`.
        call: default arguments of the pipeline call.
        prompts: file of prompts, absolute, or None.
        features: folder of the feature network, absolute, or None.
        negative_prompt: text for the unconditional branch, None to leave it to the pipeline.
        fps: frames per second of clips, None for pictures.
    """

    family: str = ""
    task: str = ""
    call: dict[str, Any] = field(default_factory=dict)
    prompts: Path | None = None
    features: Path | None = None
    negative_prompt: str | None = None
    fps: int | None = None


def is_hub_id(model: str) -> bool:
    """Whether a name has the form of a Hub id, `owner/name`."""
    return _HUB_ID.match(model) is not None


def hub_problem(model: str, error: BaseException) -> UsageError:
    """The line for a model that the Hub did not give, with the true cause.

    Args:
        model: Hub id.
        error: whatever diffusers or the Hub's client raised.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return UsageError(
            f"no model folder at {model}, and it is not in the Hub's cache either; nothing was "
            "asked for, since HF_HUB_OFFLINE is set: unset it, or give a folder"
        )
    return UsageError(
        f"no model folder at {model}, and the Hub gave none ({line_of(error)}); check the name and "
        "the network; an interrupted download resumes when rerun"
    )


def read_sheet(model: str | Path) -> Sheet:
    """The `sample.json` of a model folder; an empty sheet where there is none.

    Raises:
        UsageError: the file is damaged.
    """
    folder = given.path(model)
    path = folder / SAMPLE_FILE
    if not path.is_file():
        return Sheet()
    try:
        data = given.parse_json(path.read_text(encoding="utf-8"))
        call = dict(data.get("call", {}))
        found = {
            key: (folder / data[key]).resolve() if data.get(key) else None
            for key in ("prompts", "features")
        }
        fps = call.pop("fps", None) or data.get("fps")
        return Sheet(
            family=str(data.get("family", "")),
            task=str(data.get("task", "")),
            call=call,
            negative_prompt=data.get("negative_prompt"),
            fps=int(fps) if fps else None,
            **found,
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UsageError(f"{path} is damaged ({line_of(error)}); get the sample again") from error


def sheet_of(pipe: Any) -> Sheet:
    """The `sample.json` of the folder that a pipeline was loaded from; see `read_sheet`."""
    folder = source_of(pipe)
    return read_sheet(folder) if folder else Sheet()


def line_of(error: BaseException) -> str:
    """The first line of an error, short enough to stand in a message."""
    return (str(error).strip() or type(error).__name__).split("\n")[0][:300]


def read_prompts(path: str | Path, limit: int | None = None) -> list[str]:
    """The prompts of a file: one per line; `#` begins a comment, `\\#` a prompt with `#` in front.

    Raises:
        UsageError: no such file, not UTF-8 text, or no prompt in it.
    """
    path = given.path(path)
    if not path.is_file():
        raise UsageError(
            f"{path}: there is no such file; name a text file with one prompt per line", "prompts"
        )
    try:
        lines = given.lines(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path} cannot be read as UTF-8 text ({line_of(error)})") from error
    prompts = [prompt for prompt in map(given.prompt_of, lines) if prompt is not None]
    if not prompts:
        raise UsageError(f"{path} holds no prompt; write one per line", "prompts")
    return prompts[:limit] if limit else prompts


def prompts_for(model: str | Path, sheet: Sheet, file: str | Path | None = None) -> list[str]:
    """The prompts of a file that the user names, else the model's own.

    Args:
        model: folder or Hub id.
        sheet: of the model.
        file: as given, None for the model's own.

    Raises:
        UsageError: there are none, or the file cannot be read.
    """
    source = file or sheet.prompts
    if source is None and not given.path(model).exists() and not is_hub_id(str(model)):
        raise UsageError(f"no model folder at {model}, and it is not a Hub id (owner/name) either")
    if source is None:
        line = f"is missing: {model} has no prompts of its own; name a file, one prompt per line"
        raise UsageError(line, "prompts")
    return read_prompts(source)


def part_of_prompts(prompts: list[str], skip: int, limit: int | None) -> list[str]:
    """The prompts that are left behind the first `skip`, at most `limit` of them.

    Raises:
        UsageError: there are none.
    """
    found = prompts[skip:][:limit]
    if not found:
        raise UsageError(f"{skip} leaves none of {len(prompts)} prompts", "skip")
    return found


@contextmanager
def quiet_loading() -> Iterator[None]:
    """No loading bars and no notes on torchvision (left out on purpose) between a run's lines."""
    from diffusers.utils import logging
    from diffusers.utils.import_utils import is_transformers_available

    others = [logging]
    if is_transformers_available():
        from transformers.utils import logging as transformers_logging

        others.append(transformers_logging)
    levels = [other.get_verbosity() for other in others]
    for other in others:
        other.disable_progress_bar()
        # What they log as an error they raise, too: the command says it once.
        other.set_verbosity(50)
    try:
        with warnings.catch_warnings():
            # The old name of `dtype`, which every supported version knows.
            warnings.filterwarnings("ignore", message=".*torch_dtype.*")
            # What diffusers hands on to the Hub's client.
            warnings.filterwarnings("ignore", message=".*local_dir_use_symlinks.*")
            yield
    finally:
        for other, level in zip(others, levels, strict=True):
            other.enable_progress_bar()
            other.set_verbosity(level)


def read_index(model: str | Path) -> Index:
    """The index of a model folder or Hub id.

    Raises:
        UsageError: there is none, it is damaged, or the Hub gives none; one line.
    """
    folder = given.path(model)
    if folder.exists():
        path = index_file(folder)
        if path is None:
            raise UsageError(
                f"{folder} holds no model_index.json: not a diffusers pipeline folder (or its "
                "download was interrupted; get it again)"
            )
        try:
            values = dict(given.parse_json(path.read_text(encoding="utf-8")))
        except (OSError, ValueError, TypeError) as error:
            raise UsageError(f"{path} is damaged ({line_of(error)}); get it again") from error
        return Index(str(folder), path.name == MODULAR, values)
    if not is_hub_id(str(model)):
        raise UsageError(f"no model folder at {model}, and it is not a Hub id (owner/name) either")
    import diffusers

    first = None
    for modular, kind in ((False, "DiffusionPipeline"), (True, "ModularPipeline")):
        try:
            with quiet_loading():
                values = dict(getattr(diffusers, kind).load_config(str(model)))
            return Index(str(model), modular, values)
        except Exception as error:
            # The Hub client raises a dozen unrelated types here.
            first = first or error
    assert first is not None
    raise hub_problem(str(model), first) from first


def load_pipeline(
    model: str | Path, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> Any:
    """The diffusers pipeline of a folder or Hub id, from safetensors only.

    Raises:
        UsageError: missing, incomplete, damaged or unreachable, in one line with what to do.
    """
    device, folder = given.device(str(device)), given.path(model)
    index = read_index(model)
    try:
        with quiet_loading():
            pipe = _loaded(index, dtype)
    except UsageError:
        raise
    except Exception as error:
        # diffusers, safetensors, json and the Hub client raise a dozen unrelated types here.
        if not folder.exists():
            raise hub_problem(str(model), error) from error
        advice = "the folder is incomplete or damaged; get it again"
        raise UsageError(f"cannot load {model}: {line_of(error)} ({advice})") from error
    try:
        pipe = pipe.to(device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"{device}: {line_of(error)}", "device") from error
    hide_progress(pipe)
    return pipe


def _loaded(index: Index, dtype: torch.dtype) -> Any:
    if index.modular:
        return index.load_modular(dtype)
    from diffusers import DiffusionPipeline

    return DiffusionPipeline.from_pretrained(index.model, use_safetensors=True, torch_dtype=dtype)


def execution_device(pipe: Any) -> torch.device:
    """Where a pipeline computes; under offloading its modules rest elsewhere (`pipe.device`)."""
    return torch.device(getattr(pipe, "_execution_device", None) or pipe.device)


def class_label(pipe: Any, prompt: str) -> int:
    """The class number of a class name (or of a number as text).

    Raises:
        UsageError: the pipeline has no such class.
    """
    labels = getattr(pipe, "labels", None) or {}
    if prompt in labels:
        return int(labels[prompt])
    if prompt.isdecimal() and len(prompt) < 20:
        return int(prompt)
    folded = {name.casefold(): name for name in labels}
    if prompt.casefold() in folded:
        return int(labels[folded[prompt.casefold()]])
    near = difflib.get_close_matches(prompt.casefold(), folded, n=1)
    hint = f"did you mean {folded[near[0]]!r}?" if near else ""
    some = ", ".join(list(labels)[:5])
    raise UsageError(
        f"the model has no class {given.shown(prompt)}; "
        + (hint or f"it has such as: {some or 'numbers'}")
    )


def is_class_pipeline(pipe: Any) -> bool:
    """Whether the pipeline is asked by class number instead of by prompt."""
    return "class_labels" in arguments(pipe)
