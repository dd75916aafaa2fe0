"""Where figures come from: versions, commit, device, and the model's fingerprint."""

from __future__ import annotations

import hashlib
import importlib.metadata
import platform
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from ..core.transformers import denoisers_of, known_family, modules_of
from . import given
from .models import execution_device

_EDGE = 1 << 20
_PACKAGES = ("torch", "diffusers", "transformers", "torchmetrics", "cache-dit", "numpy")


def versions(*more: str) -> dict[str, str]:
    """Versions of what computes the figures; packages that are not installed are left out.

    Args:
        *more: packages to name beside the usual ones.
    """
    found = {"ditaccel": "unknown", "python": platform.python_version()}
    for name in ("ditaccel", *_PACKAGES, *more):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def command() -> str:
    """The command line of this process, its program by name alone."""
    name = Path(sys.argv[0] or "python").name
    return shlex.join(["ditaccel" if name == "__main__.py" else name, *sys.argv[1:]])


def commit() -> str:
    """Git commit of this source, with `+changes` where tracked files differ; else "unknown"."""
    here = Path(__file__).resolve()

    def git(*arguments: str) -> str:
        return subprocess.run(
            ["git", "-C", str(here.parent), *arguments],
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        ).stdout.strip()

    try:
        # An installed copy may lie inside somebody else's repository.
        git("ls-files", "--error-unmatch", here.name)
        changed = git("status", "--porcelain", "--untracked-files=no")
        return git("rev-parse", "HEAD") + ("+changes" if changed else "")
    except (OSError, subprocess.SubprocessError):
        return "unknown"


def device_of(pipe: Any) -> dict[str, Any]:
    """Name and threads of the device a pipeline runs on."""
    device = execution_device(pipe)
    threads = 0 if device.type == "cuda" else torch.get_num_threads()
    return {"type": device.type, "name": device_name(device), "threads": threads}


def device_name(device: torch.device) -> str:
    """Name of a GPU, else that of the processor."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name()


def driver(device: torch.device) -> str:
    """Version of a GPU's driver; "" for a CPU and where nothing says so."""
    if device.type != "cuda":
        return ""
    if torch.version.hip:
        return f"ROCm {torch.version.hip}"
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip().split("\n")[0]


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def fingerprint(model: str | Path) -> str:
    """Hash over a model folder's files (whole small ones, the edges of large ones).

    Returns:
        16 hex digits; for a Hub id a hash of the id.
    """
    folder, digest = given.path(model), hashlib.sha256()
    if not folder.is_dir():
        return hashlib.sha256(str(model).encode()).hexdigest()[:16]
    for path in sorted(p for p in folder.rglob("*") if p.is_file()):
        if path.suffix not in (".json", ".safetensors", ".txt", ".model"):
            continue
        size = path.stat().st_size
        digest.update(f"{path.relative_to(folder)}:{size};".encode())
        with path.open("rb") as file:
            digest.update(file.read(_EDGE))
            if size > _EDGE:
                file.seek(max(_EDGE, size - _EDGE))
                digest.update(file.read())
    return digest.hexdigest()[:16]


def fingerprint_of(pipe: Any) -> str:
    """Hash over a loaded pipeline: its class, and of each weight the shape and the first values.

    Returns:
        16 hex digits.
    """
    digest = hashlib.sha256(type(pipe).__name__.encode())
    for name, part in modules_of(pipe).items():
        for key, weight in part.state_dict().items():
            for plain in plain_parts(weight):
                edge = plain.detach().flatten()[:64].double().sum()
                digest.update(f"{name}.{key}:{tuple(plain.shape)}:{float(edge)!r};".encode())
    return digest.hexdigest()[:16]


def plain_parts(weight: torch.Tensor) -> Iterator[torch.Tensor]:
    """A weight itself, or the plain tensors that a quantised one is made of."""
    if not is_traceable_wrapper_subclass(weight):
        yield weight
        return
    names, _ = weight.__tensor_flatten__()
    for name in names:
        yield from plain_parts(getattr(weight, name))


def family_of(pipe: Any) -> str:
    """The pipeline's family in the plugin's words, else its transformer's class name.

    Args:
        pipe: a diffusers pipeline.
    """
    for part in denoisers_of(pipe).values():
        family = known_family(part)
        return type(part).__name__ if family is None else family.name
    return type(pipe).__name__
