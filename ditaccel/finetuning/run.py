"""finetune: train weights for SLA so that the pipeline with SLA matches its dense output.

Distillation: the student is the pipeline's transformer under sparse-linear attention, the teacher
the same transformer dense, at the same noisy latents; the loss is the mean squared error of their
outputs (velocity or noise). The teacher's outputs come from dense generations, which make the noisy
latents too, so no data set is needed. A folder holds all of a run: a killed one resumes exactly
from its last checkpoint.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..attention.engine.planner import DenseReason
from ..attention.sla import SLAConfig
from ..core.transformers import transformers_of
from ..errors import ConfigError, UsageError
from ..io.asking import check_call
from ..io.prompts import Prompt, listed
from ..pipelines import FamilyAdapter
from ..sessions.session import session_of
from .result import Finetuned
from .student import Student
from .teacher import Teacher
from .training import Settings, Training


def finetune(
    pipe: Any,
    data: Prompt | Iterable[Prompt],
    config: SLAConfig | None = None,
    *,
    out: str | os.PathLike[str],
    steps: int = 500,
    train: str = "projection",
    lr: float = 1e-3,
    weights_lr: float = 1e-5,
    batch: int = 1,
    seed: int = 0,
    save_every: int = 25,
    average: float = 0.99,
    quiet: bool = False,
    **call: Any,
) -> Finetuned:
    """Train weights for SLA on a pipeline; the pipeline itself is left as it was.

    Runs on the device of the pipeline, and under `accelerate launch` on several: each process draws
    its own calls, and gradients are averaged.

    Args:
        pipe: an unaccelerated diffusers pipeline.
        data: prompts, or mappings of call arguments; a mapping with `latents` holds clean latents
            in the form that the transformer is given, `(1, …)`, and no generation is run for it.
        config: what to train for, mode `combined` (default) or `sla`; not for its dense steps.
        out: folder of the run: weights, loss curve, checkpoint. A second call with the same
            arguments resumes where the first one stopped.
        steps: updates.
        train: `projection` (a small file, and no second copy of any weight), `attention` (and the
            weights of the attention modules) or `all` (and all weights of the transformer; the
            teacher's are kept besides, and the file holds a difference for each).
        lr: of the projections (AdamW, 20 steps of warm-up, then a cosine to a tenth).
        weights_lr: of the transformer's own weights. Published: 1e-5 for 1.3 B parameters.
        batch: transformer calls per update and process.
        seed: of noise and order.
        save_every: updates between checkpoints.
        average: decay of the moving average of the weights, which is what the file holds: updates
            of a few calls are noisy, and the model is nearly right to begin with.
        quiet: show no progress.
        **call: arguments of every pipeline call, e.g. `num_inference_steps=50, height=480`.

    Raises:
        ConfigError: an option out of range, or data of the wrong shape.
        UsageError: the pipeline is accelerated, or the folder holds a run with other arguments.
        UnsupportedError: a family whose attention cannot be trained.
        TrainingStopped: the loss is not finite; the last good checkpoint is kept.
    """
    settings = Settings(steps, train, lr, weights_lr, batch, seed, save_every, average)
    data = listed(data, "data")
    transformers, adapter = _dense_transformers(pipe, data, call)
    config = config or SLAConfig()
    student = Student(transformers, adapter, config, train)
    try:
        teacher = Teacher(pipe, transformers, adapter, call)
        _require_sparse(student, teacher, data[0], settings.seed)
        return Training(Path(out), student, teacher, data, config, settings, call, quiet).train()
    finally:
        student.close()


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


def _require_sparse(student: Student, teacher: Teacher, item: Any, seed: int) -> None:
    """Look at one transformer call, before anything is written: is there something to learn?

    Raises:
        ConfigError: no attention call is sparse, so no weight would ever change.
    """
    first = teacher.first_call(item, seed)
    with torch.no_grad():
        sample, named = teacher.sample(first), teacher.named(first)
        with student.attending(first.component, first.step, sample, named):
            teacher.output(first)
    dense = student.dense_reasons(first.component)
    if dense is None:
        return
    why = (
        "; ".join(dict.fromkeys(student.warned)) or ", ".join(sorted(dense)) or "it was not called"
    )
    what = "lower min_tokens of the config (sla:min_tokens=0), or make larger pictures or clips"
    if dense != {DenseReason.SHORT}:
        what = "give a config and a call under which attention is sparse"
    raise ConfigError(f"nothing would be trained, since no attention call is sparse: {why}. {what}")
