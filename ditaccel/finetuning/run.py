"""finetune: train what a method needs, so that the pipeline with it matches its dense output.

Distillation: the student is the pipeline's own transformer under the method, the teacher the same
transformer dense, at the same noisy latents; the loss is mostly the mean squared error of their
outputs (velocity or noise). Dense generations give both, so no data set is needed. What is trained,
and in place of what, is the student's (`student.py`). A folder holds all of a run: a killed one
resumes exactly from its last checkpoint. Under `accelerate launch` each process draws its own
lessons, and gradients are averaged.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..config import MethodConfig, require
from ..core.transformers import transformers_of
from ..errors import UsageError
from ..io.asking import check_call
from ..io.prompts import Prompt, listed
from ..pipelines import FamilyAdapter
from ..sessions.session import session_of
from .result import Finetuned
from .student import Student, Subject, default_config, student_of
from .teacher import Teacher
from .training import Settings, Training


def finetune(
    pipe: Any,
    data: Prompt | Iterable[Prompt],
    config: MethodConfig | None = None,
    *,
    out: str | os.PathLike[str],
    steps: int = 500,
    train: str | None = None,
    rank: int | None = None,
    lr: float = 1e-3,
    weights_lr: float = 1e-5,
    batch: int = 1,
    seed: int = 0,
    save_every: int = 25,
    average: float = 0.99,
    quiet: bool = False,
    **call: Any,
) -> Finetuned:
    """Train for a method on a pipeline; the pipeline itself is left as it was.

    Args:
        pipe: an unaccelerated diffusers pipeline.
        data: prompts, or mappings of call arguments; a mapping with `latents` holds clean latents
            in the form that the transformer is given, `(1, …)`, and no generation is run for it.
        config: to train for, by default sparse-linear attention; not for its dense steps.
        out: folder of the run: weights, loss curve, checkpoint. A second call with the same
            arguments resumes where the first one stopped.
        steps: updates.
        train: `attention` (the weights of the attention modules) or `all` (of the transformer; the
            file holds a difference for each). For sparse-linear attention also `projection`, its
            default: what the method adds alone, with no second copy of any weight.
        rank: of the changes of weight matrices, for a small file (LoRA); None for any change.
        lr: of what the method adds (AdamW, 20 steps of warm-up, then a cosine to a tenth).
        weights_lr: of the transformer's own weights. Published: 1e-5 for 1.3 B parameters.
        batch: lessons per update and process, mostly transformer calls.
        seed: of noise and order.
        save_every: updates between checkpoints.
        average: decay of the moving average of the weights, which is what the file holds.
        quiet: show no progress.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=50, height=480`.

    Raises:
        ConfigError: an option out of range, data of the wrong shape, or nothing to train.
        UsageError: the pipeline is accelerated, or the folder holds a run with other arguments.
        UnsupportedError: a family whose attention cannot be trained.
        TrainingStopped: the loss is not finite; the last good checkpoint is kept.
    """
    data = listed(data, "data")
    transformers, family = _dense_transformers(pipe, data, call)
    config = config or default_config()
    kind = student_of(config)
    train = train or kind.choices(config)[0]
    settings = Settings(steps, train, lr, weights_lr, batch, seed, save_every, average, rank)
    student = _student(kind, Subject(pipe, transformers, family, call), config, settings)
    try:
        teacher = Teacher(pipe, transformers, family, call)
        student.check(teacher, data[0], settings.seed)
        return Training(Path(out), student, teacher, data, settings, call, quiet).train()
    finally:
        student.close()


def _student(kind: type[Student], subject: Subject, config: Any, settings: Settings) -> Student:
    """The student, with the arguments that its kind takes.

    Raises:
        ConfigError: `rank` is given for a kind that changes no weights.
    """
    if settings.rank is None:
        return kind(subject, config, settings.train)
    require(
        kind.low_rank,
        f"rank={settings.rank} is for changes of the model's weights, and {config.method} trains "
        "none; leave it out",
    )
    low_rank: Any = kind
    made: Student = low_rank(subject, config, settings.train, settings.rank)
    return made


def _dense_transformers(
    pipe: Any, data: Sequence[Any], call: Mapping[str, Any]
) -> tuple[dict[str, torch.nn.Module], FamilyAdapter]:
    """The transformers to train, and their family, once the pipeline and its calls are checked."""
    if isinstance(pipe, torch.nn.Module):
        raise UsageError("finetune needs the pipeline: a transformer alone makes no noisy latents")
    transformers, adapter = transformers_of(pipe)
    if session_of(transformers) is not None:
        raise UsageError("finetune needs the dense pipeline; call ditaccel.restore(pipe) first")
    for item in data:
        check_call(pipe, {**call, **({} if isinstance(item, str) else item)}, "finetune")
    return transformers, adapter
