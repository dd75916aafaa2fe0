"""`ditaccel doctor MODEL`: what would be patched, from the folder's configs alone."""

from __future__ import annotations

import argparse
import json
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch

from ..errors import UnsupportedError, UsageError
from ..io import arguments as options
from ..io import given
from ..io.given import whole_argument as whole
from ..io.indexes import MODULAR, ORDINARY, Index, index_file
from ..io.models import is_hub_id, quiet_loading, read_sheet
from ..io.opening import open_pipeline
from ..pipelines import adapter_for
from .checks import doctor, versions
from .findings import Diagnosis


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options of `ditaccel doctor`."""
    parser.add_argument(
        "model",
        help="folder of a diffusers pipeline or transformer, or a Hub id in the local cache",
    )
    parser.add_argument(
        "--config",
        metavar="SPEC",
        help="preset, YAML file or method:option=value to look at (default: all methods)",
    )
    options.add_steps(parser)
    parser.add_argument(
        "--tokens",
        type=whole("--tokens", 1),
        metavar="N",
        help="image or video tokens per call (default: from the model's own size)",
    )
    options.add_device(parser)
    options.add_dtype(parser, "bfloat16, for the memory estimate")
    options.add_pipeline(parser)
    options.add_json(parser, "the findings")


def run(args: argparse.Namespace) -> int:
    """Print what was found; 0, or 1 where nothing would happen, whatever the reason.

    Raises:
        UsageError: the folder cannot be read, or an option is out of range.
    """
    with quiet_loading():
        found = _examined(args)
    print(json.dumps(found.to_dict(), indent=1) if args.json else found)
    return 0 if found.ok else 1


def _examined(args: argparse.Namespace) -> Diagnosis:
    if args.pipeline:
        opened = open_pipeline(args.model, args.device, args.dtype, args.pipeline)
        pipe, call = opened.pipe, {**read_sheet(args.model).call, **opened.call}
    else:
        folder = model_folder(args.model)
        call = read_sheet(folder).call
        try:
            pipe = hollow_pipeline(folder, getattr(torch, args.dtype or "bfloat16"))
        except UnsupportedError as error:
            return Diagnosis(_name_of(folder), problem=str(error), versions=versions())
    return doctor(pipe, args.config, tokens=args.tokens, steps=args.steps, call=call)


def model_folder(model: str | Path) -> Path:
    """The folder of a model: as given, or where the local Hub cache has the files of an id.

    Raises:
        UsageError: there is none; nothing is downloaded.
    """
    folder = given.path(model)
    if folder.exists() or not is_hub_id(str(model)):
        return folder
    from huggingface_hub import try_to_load_from_cache

    for name in (ORDINARY, MODULAR, "config.json"):
        found = try_to_load_from_cache(str(model), name)
        if isinstance(found, str):
            return Path(found).parent
    raise UsageError(
        f"{model} is neither a folder nor a model in the local Hub cache; doctor reads configs "
        f"that are here (fetch them without weights: hf download {model} --include '*.json')"
    )


def _name_of(folder: Path) -> str:
    """The pipeline's or transformer's class name, as the folder gives it."""
    return str(_read(index_file(folder) or folder / "config.json").get("_class_name"))


def hollow_pipeline(model: str | Path, dtype: torch.dtype = torch.bfloat16) -> Any:
    """The pipeline of a folder without a single weight: what its configs alone make of it.

    Returns:
        A modular pipeline, else an object of the pipeline's class name with `components`,
        `scheduler` and `vae`; the modules are on the meta device.

    Raises:
        UsageError: no pipeline or transformer folder, or its files cannot be read.
        UnsupportedError: it is of a class that diffusers lacks, or has a UNet.
    """
    folder = given.path(model)
    file = index_file(folder)
    if file is None:
        if (folder / "config.json").is_file():
            return _hollow(_read(folder / "config.json").get("_class_name"), folder, dtype)
        raise UsageError(
            f"{folder} holds no model_index.json: not a diffusers pipeline folder (doctor reads "
            "folders and the local Hub cache; download the model first)"
        )
    index = Index(str(folder), file.name == MODULAR, _read(file))
    named = index.parts
    _class(index.values.get("_class_name"), file)
    for name, kind in named.items():
        if name.startswith("unet"):
            # before anything of it is read: it may well be unreadable, and nobody needs it
            raise UnsupportedError(
                f"{index.pipeline} has a UNet ({kind}); ditaccel accelerates diffusion transformers"
            )
    parts: dict[str, Any] = {}
    for name, kind in named.items():
        if name.startswith("transformer") or adapter_for(kind) is not None:
            parts[name] = _hollow(kind, folder / name, dtype)
        elif name == "scheduler":
            parts[name] = _scheduler(kind, folder / name)
    vae = _vae(named.get("vae"), folder / "vae", dtype)
    if index.modular:
        pipe = index.hollow()
        pipe.register_components(**parts, **({} if vae is None else {"vae": vae}))
        return pipe
    pipe = type(index.pipeline, (), {})()
    vars(pipe).update(parts)
    pipe.components, pipe.scheduler = parts, parts.get("scheduler")
    own = {key: value for key, value in index.values.items() if not isinstance(value, list)}
    pipe.config = SimpleNamespace(**own | {"_name_or_path": str(folder)})
    pipe.vae = vae
    return pipe


def _read(path: Path) -> dict[str, Any]:
    try:
        data = given.parse_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UsageError(f"{path} cannot be read ({error}); get the folder again") from None
    if not isinstance(data, dict):
        raise UsageError(f"{path} holds no mapping; get the folder again")
    return data


def _class(name: Any, path: Path) -> Any:
    import diffusers

    kind = getattr(diffusers, str(name), None)
    if name is None:
        raise UsageError(f"{path} names no class: not a folder of diffusers")
    if kind is None:
        raise UnsupportedError(
            f"{path} names the class {name}, which diffusers {diffusers.__version__} does not "
            "have; update diffusers, or call ditaccel.doctor(pipe) on the loaded pipeline"
        )
    return kind


def _cast(module: torch.nn.Module, dtype: torch.dtype) -> torch.nn.Module:
    # nn.Module's own: that of diffusers warns of modules kept in float32, which have no values here
    return torch.nn.Module.to(module, dtype)


def _hollow(name: Any, path: Path, dtype: torch.dtype) -> Any:
    kind = _class(name, path)
    if str(name).startswith("UNet"):
        raise UnsupportedError(
            f"{path} is a UNet ({name}); ditaccel accelerates diffusion transformers"
        )
    config = _read(path / "config.json")
    try:
        with torch.device("meta"), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of models about their own parts
            return _cast(kind.from_config(config), dtype).eval()
    except Exception as error:
        # model constructors raise many types
        line = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise UsageError(
            f"{path}: a {name} cannot be made from its config alone ({line}); call "
            "ditaccel.doctor(pipe) on the loaded pipeline"
        ) from None


def _vae(kind: str | None, path: Path, dtype: torch.dtype) -> Any:
    """Sizes come from it; None where it cannot be made."""
    try:
        return None if kind is None else _hollow(kind, path, dtype)
    except (UsageError, UnsupportedError):
        return None


def _scheduler(name: Any, path: Path) -> Any:
    return _class(name, path).from_config(_read(path / "scheduler_config.json"))
