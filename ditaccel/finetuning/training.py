"""One run of fine-tuning: updates, checkpoints, the folder that holds all of it."""

from __future__ import annotations

import dataclasses
import io
import json
import math
import os
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..config import require
from ..errors import ConfigError, DitaccelError, UsageError
from ..io.differences import differences, told
from ..io.files import append_line, read_lines, write_atomically, write_json
from ..io.progress import Progress
from ..warning import warn
from .loss_curve import LOSSES, draw_curve
from .result import Finetuned
from .rounds import Rounds
from .student import Student
from .teacher import Teacher

STATE, RUN = "state.pt", "run.json"
_WARMUP = 20
_LARGEST = 2 << 30


class TrainingStopped(DitaccelError):
    """Training broke off; the message says at which step, and what is kept."""


@dataclass(frozen=True)
class Settings:
    """The arguments of `finetune` that belong to training itself; see there."""

    steps: int
    train: str
    lr: float
    weights_lr: float
    batch: int
    seed: int
    save_every: int
    average: float
    rank: int | None = None

    def __post_init__(self) -> None:
        for name in ("steps", "batch", "save_every"):
            require(getattr(self, name) >= 1, f"{name} is {getattr(self, name)}; give 1 or more")
        for name in ("lr", "weights_lr"):
            value = getattr(self, name)
            require(0.0 < value < math.inf, f"{name} is {value}; give a number above 0")
        require(
            0.0 <= self.average < 1.0,
            f"average is {self.average}; give a decay from 0 (the last update alone) to below 1",
        )


class Training:
    """One run of fine-tuning in its folder."""

    def __init__(
        self,
        folder: Path,
        student: Student,
        teacher: Teacher,
        data: Sequence[Any],
        settings: Settings,
        call: Mapping[str, Any],
        quiet: bool,
    ) -> None:
        self._folder, self._student, self._teacher = folder, student, teacher
        self._items, self._settings, self._quiet = len(data), settings, quiet
        groups = [group for group in student.groups() if group.tensors]
        self._trained = [tensor for group in groups for tensor in group.tensors]
        self._accelerator = _accelerator(self._trained[0].device)
        self._rank = self._accelerator.process_index if self._accelerator else 0
        self._world = self._accelerator.num_processes if self._accelerator else 1
        self._optimiser = torch.optim.AdamW(
            [{"params": g.tensors, "lr": getattr(settings, g.rate)} for g in groups],
            betas=(0.9, 0.99),
            weight_decay=0.0,
            foreach=False,
        )
        self._rates = [g["lr"] for g in self._optimiser.param_groups]
        self._rounds = Rounds(
            student,
            teacher,
            data,
            batch=settings.batch,
            seed=settings.seed,
            rank=self._rank,
            world=self._world,
        )
        self._averages = [t.detach().clone() for t in self._trained]
        self._step = 0
        self._before = math.nan
        self._check_size()
        self._claim(call)

    @contextmanager
    def _averaged(self) -> Iterator[None]:
        """The student with the averaged weights, for a while."""
        own = [t.detach().clone() for t in self._trained]
        self._put(self._averages)
        try:
            yield
        finally:
            self._put(own)

    def _put(self, values: Sequence[Tensor]) -> None:
        with torch.no_grad():
            for tensor, value in zip(self._trained, values, strict=True):
                tensor.copy_(value)
        self._student.apply()

    @property
    def _main(self) -> bool:
        return self._rank == 0

    def _check_size(self) -> None:
        self._bytes = self._student.size()
        if self._bytes > _LARGEST:
            others = self._student.choices(self._student.config)
            less = [each for each in others if each != self._settings.train]
            cure = f"choose train={' or '.join(map(repr, less))}" if less else "train less"
            raise ConfigError(
                f"train={self._settings.train!r} would make a file of {self._bytes / 1e9:.1f} GB; "
                f"{cure}"
            )

    def _claim(self, call: Mapping[str, Any]) -> None:
        """Take the folder, or resume in it."""
        described = {
            "settings": dataclasses.asdict(self._settings),
            **self._student.described(),
            "call": {k: repr(v) for k, v in sorted(call.items())},
            "items": self._items,
            "processes": self._world,
        }
        path = self._folder / RUN
        if path.exists():
            try:
                known = json.loads(path.read_text(encoding="utf-8"))
            except (OSError, ValueError) as error:
                raise UsageError(f"{path} is damaged ({error}); choose another folder") from None
            changed = differences(json.loads(json.dumps(described)), known)
            if changed:
                raise UsageError(
                    f"{self._folder} holds a run with other settings ({told(changed)}); choose "
                    "another folder, or the same arguments to resume it"
                )
        elif self._main:
            self._folder.mkdir(parents=True, exist_ok=True)
            write_json(path, described)

    # -- training --

    def _error(self, lessons: Sequence[Any]) -> float:
        return self._student.error(lessons, self._teacher)

    def _held_out_error(self, lessons: Sequence[Any]) -> float:
        with self._averaged():
            return self._error(lessons)

    def train(self) -> Finetuned:
        """Train to the end."""
        held_out = self._rounds.held_out()
        resumed = self._resume()
        if not resumed:
            self._before = self._error(held_out)
            self._save()
        now = self._held_out_error(held_out) if resumed else self._before
        progress = Progress(
            self._settings.steps, self._step, self._quiet or not self._main, "finetune", "steps"
        )
        progress.note(
            f"{self._bytes / 1e6:.2f} MB of weights to train; error {self._before:.4f} before, "
            f"{now:.4f} at step {self._step}"
        )
        try:
            while self._step < self._settings.steps:
                loss = self._update()
                progress.step(f"loss {loss:.3e}")
                done = self._step == self._settings.steps
                if done or self._step % self._settings.save_every == 0:
                    self._save()
        finally:
            progress.close()
        after = self._held_out_error(held_out)
        size = 0
        if self._main:
            size = self._save_student({"error_after": after})
            draw_curve(self._folder)
        made = Finetuned(self._folder / self._student.file, self._step, self._before, after, size)
        if not made.better and self._main:
            warn(made.verdict)
        return made

    def _rate(self) -> float:
        steps = self._settings.steps
        warm = min(1.0, (self._step + 1) / min(_WARMUP, steps))
        return warm * (0.1 + 0.9 * (1 + math.cos(math.pi * self._step / steps)) / 2)

    def _learn(self, lessons: Sequence[Any]) -> float:
        """The backward of the lessons of one update; returns their mean loss."""
        total = 0.0

        def backward(loss: Tensor) -> None:
            nonlocal total
            loss = loss / len(lessons)
            total += float(loss.detach())
            if math.isfinite(total):
                loss.backward()

        for lesson in lessons:
            self._student.learn(lesson, self._teacher, backward)
        return total

    def _update(self) -> float:
        for group, rate in zip(self._optimiser.param_groups, self._rates, strict=True):
            group["lr"] = rate * self._rate()
        start = time.monotonic()
        total = self._learn(self._rounds.lessons(self._step))
        self._student.gather()
        trained = [t for t in self._trained if t.grad is not None]
        if self._accelerator is not None and self._world > 1:
            for tensor in trained:
                tensor.grad = self._accelerator.reduce(tensor.grad, reduction="mean")
        norm = torch.nn.utils.clip_grad_norm_(trained, 1.0)
        if not (math.isfinite(total) and math.isfinite(float(norm))):
            self._stop(total, float(norm))
        self._optimiser.step()
        self._optimiser.zero_grad(set_to_none=True)
        self._student.apply()
        decay = min(self._settings.average, (1 + self._step) / (10 + self._step))
        with torch.no_grad():
            for kept, tensor in zip(self._averages, self._trained, strict=True):
                kept.lerp_(tensor, 1 - decay)
        self._step += 1
        if self._main:
            line = {
                "step": self._step,
                "loss": total,
                "gradient": float(norm),
                "seconds": round(time.monotonic() - start, 3),
            }
            append_line(self._folder / LOSSES, line)
        return total

    def _stop(self, loss: float, norm: float) -> None:
        what = f"loss is {loss}" if not math.isfinite(loss) else f"gradient is {norm}"
        kept, made = self._folder / STATE, self._folder / self._student.file
        step = _load(kept)["step"] if kept.exists() else 0
        raise TrainingStopped(
            f"the {what} at step {self._step + 1}: training stopped; {made} and {STATE} are those "
            f"of step {step}, the last good checkpoint. Lower lr (now "
            f"{self._settings.lr:g}) and train in another folder"
        )

    # -- checkpoints --

    def _save(self) -> None:
        if not self._main:
            return
        state = {
            "step": self._step,
            "before": self._before,
            "weights": [t.detach().cpu() for t in self._trained],
            "averages": [t.cpu() for t in self._averages],
            "optimiser": self._optimiser.state_dict(),
            "random": torch.get_rng_state(),
            "student": self._student.state(),
        }
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._save_student({})
        write_atomically(self._folder / STATE, lambda file: file.write(buffer.getvalue()))

    def _save_student(self, notes: dict[str, Any]) -> int:
        """Write what was trained, averaged, with notes for people; returns its size in bytes."""
        about = {
            "steps": self._step,
            "train": self._settings.train,
            "data": self._items,
            "error_before": self._before,
        }
        with self._averaged():
            return self._student.save(self._folder / self._student.file, about | notes)

    def _resume(self) -> bool:
        path = self._folder / STATE
        if not path.exists():
            return False
        state = _load(path)
        self._step, self._before = state["step"], state["before"]
        self._put(state["weights"])
        for kept, value in zip(self._averages, state["averages"], strict=True):
            kept.copy_(value)
        self._optimiser.load_state_dict(state["optimiser"])
        self._student.load_state(state.get("student", {}))
        torch.set_rng_state(state["random"])
        if self._main:
            # lines after the checkpoint are written again
            lines = [x for x in read_lines(self._folder / LOSSES) if x["step"] <= self._step]
            text = "".join(json.dumps(line) + "\n" for line in lines)
            write_atomically(self._folder / LOSSES, lambda file: file.write(text.encode()))
        return True


def _load(path: Path) -> dict[str, Any]:
    try:
        state: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        # zipfile, pickle and torch each have their own idea of a broken file.
        raise UsageError(
            f"{path} is damaged ({error}); delete the folder and train again"
        ) from None
    return state


def _accelerator(device: torch.device) -> Any:
    """Accelerate's state where a launcher started several processes; None for one alone."""
    started = int(os.environ.get("WORLD_SIZE", "1"))
    if started < 2:
        return None
    from accelerate import Accelerator

    accelerator = Accelerator(cpu=device.type == "cpu")
    if accelerator.num_processes != started:
        raise UsageError(
            f"{started} processes were started, but accelerate sees {accelerator.num_processes}; "
            "each would train alone. Start them with `accelerate launch` or torchrun"
        )
    return accelerator
