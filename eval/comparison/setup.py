"""What `run.json` says of a comparison: enough to make it again, and to refuse another one."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ditaccel.io import given, provenance

from ..judge import Judge
from ..measure.ceilings import ceilings_of
from ..measure.memory import CPU_MEANING, CUDA_MEANING
from ..options import Options
from ..peers.base import PEERS
from ..records import SCHEMA
from ..specs import RunConfig
from .sampler import Sampler
from .subject import Subject


def describe(
    subject: Subject,
    sampler: Sampler,
    configs: Sequence[RunConfig],
    prompts: Sequence[str],
    seeds: Sequence[int],
    judge: Judge,
    options: Options,
) -> dict[str, Any]:
    """The content of `run.json`.

    Args:
        subject: the model.
        sampler: what calls it.
        configs: all rows, dense first.
        prompts: of the samples.
        seeds: of the samples.
        judge: of the run.
        options: of the run.
    """
    device = provenance.device_of(subject.pipe)
    call = {name: argument(value) for name, value in sampler.call.items()}
    setup = {
        "schema": SCHEMA,
        "model": _model_name(subject.name),
        "fingerprint": subject.fingerprint,
        "family": subject.family,
        "task": subject.sheet.task,
        "call": {**call, "num_inference_steps": sampler.steps},
        "configs": [row.to_dict() for row in configs],
        "prompts": list(prompts),
        "seeds": list(seeds),
        "device": device,
        "dtype": subject.opened.dtype,
        "versions": provenance.versions(),
        "commit": provenance.commit(),
        "command": provenance.command(),
        "peers": {name: PEERS[name].note for row in configs if (name := row.work.peer)},
        "fps": subject.sheet.fps,
        "features": judge.features,
        "metrics": [metric.to_dict() for metric in judge.metrics],
        "memory": CUDA_MEANING if device["type"] == "cuda" else CPU_MEANING,
        "pairs": options.pairs,
    }
    if (ceilings := ceilings_of(subject.pipe)) is not None:
        setup["ceilings"] = ceilings.to_dict()
    if subject.factory is not None:
        setup["pipeline"] = subject.factory.identity
    if options.scheduler is not None:
        setup["scheduler"] = options.scheduler
    return setup


def _model_name(model: str) -> str:
    """A folder as seen from the working directory, else its name: results may be published."""
    folder = given.path(model)
    if not folder.exists():
        return model
    try:
        return str(folder.resolve().relative_to(Path.cwd()))
    except ValueError:
        return folder.resolve().name


def argument(value: Any) -> Any:
    """An argument of the call as `run.json` keeps it: the same text for the same content."""
    if isinstance(value, (str, int, float, bool, type(None))):
        return value
    if isinstance(value, (list, tuple)):
        return [argument(part) for part in value]
    if isinstance(value, dict):
        return {str(key): argument(part) for key, part in value.items()}
    if isinstance(value, torch.Tensor):
        return f"tensor{tuple(value.shape)}"
    array = np.asarray(value) if hasattr(value, "__array_interface__") else None
    if array is None or array.dtype == object:
        return type(value).__name__  # its text may hold an address
    digest = hashlib.sha256(np.ascontiguousarray(array).tobytes()).hexdigest()[:16]
    return f"{type(value).__name__}{array.shape} {digest}"
