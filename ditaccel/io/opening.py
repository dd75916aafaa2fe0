"""The pipeline that a command works on, its device and its dtype."""

from __future__ import annotations

import json
import struct
from collections import Counter
from pathlib import Path

import torch

from . import given
from .arguments import AUTO
from .factory import Factory, Opened, read_factory
from .models import hub_problem, is_hub_id, load_pipeline, read_index

_SAFETENSORS_DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}
# A header is some hundred kilobytes for the largest models.
_LARGEST_HEADER = 100_000_000


def choose_device(text: str) -> str:
    """The device that a text means; `auto` is a GPU where torch sees one.

    Raises:
        UsageError: no device, or none that torch has here.
    """
    if text == AUTO:
        return "cuda" if torch.cuda.is_available() else "cpu"
    return given.device(text)


def use_threads(count: int | None, device: str) -> None:
    """Set torch's CPU threads of this process.

    One thread is the default on a CPU: results do not depend on the machine, and the small models
    that a CPU is good for gain little from more. As soon as another process wants a core, threads
    wait for each other, and a run takes ten times as long.

    Args:
        count: as the user gave it, None for the default.
        device: where the pipeline runs; on a GPU torch's own choice stays.
    """
    if count is None and torch.device(device).type == "cpu":
        count = 1
    if count is not None:
        torch.set_num_threads(count)


def checkpoint_dtype(folder: Path) -> torch.dtype | None:
    """The dtype that most of a model folder's transformer is stored in.

    Returns:
        None where nothing says so (no safetensors file, or weights stored in 8 bits).
    """
    sizes: Counter[str] = Counter()
    for path in sorted(folder.glob("transformer*/*.safetensors")):
        try:
            with path.open("rb") as file:
                (length,) = struct.unpack("<Q", file.read(8))
                if length > _LARGEST_HEADER:
                    return None
                header = json.loads(file.read(length))
            for name, entry in header.items():
                if name != "__metadata__":
                    start, end = entry["data_offsets"]
                    sizes[entry["dtype"]] += end - start
        except (OSError, ValueError, KeyError, TypeError, AttributeError, struct.error):
            return None  # loading it says what is wrong with it
    return _SAFETENSORS_DTYPES.get(sizes.most_common(1)[0][0]) if sizes else None


def choose_dtype(model: str | Path, device: str, name: str | None) -> torch.dtype:
    """The dtype to load a model in: what was asked for, else float32 on a CPU, else its own.

    Args:
        model: folder or Hub id; the latter is downloaded to be looked at.
        device: where it will run.
        name: torch's name of a dtype, None to choose.
    """
    if name is not None:
        return getattr(torch, name)
    if device == "cpu":
        return torch.float32
    folder = given.path(model)
    if not folder.is_dir() and is_hub_id(str(model)):
        if read_index(model).modular:  # of parts from wherever: each is loaded as such
            return torch.bfloat16
        from diffusers import DiffusionPipeline

        try:
            folder = Path(DiffusionPipeline.download(str(model), use_safetensors=True))
        except Exception as error:
            # The Hub client raises a dozen unrelated types here.
            raise hub_problem(str(model), error) from error
    return checkpoint_dtype(folder) or torch.bfloat16


def open_pipeline(
    model: str | Path,
    device: str = AUTO,
    dtype: str | None = None,
    factory: str | Factory | None = None,
) -> Opened:
    """The pipeline of a model, or what a user's function makes of it.

    Args:
        model: folder or Hub id; with a factory, what the factory makes of it.
        device: such as `cuda:1`, or `auto`.
        dtype: torch's name of one, None to choose (see `choose_dtype`).
        factory: `module:function` of a user's function, or what was read from it.

    Raises:
        UsageError: whatever is wrong, in one line.
    """
    chosen = choose_device(device)
    if factory is None:
        return Opened(load_pipeline(model, chosen, choose_dtype(model, chosen, dtype)))
    made = factory if isinstance(factory, Factory) else read_factory(factory)
    return made.make(str(model), chosen, None if dtype is None else getattr(torch, dtype))
