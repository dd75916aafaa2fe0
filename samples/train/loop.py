"""The training loop shared by all samples: resumable, with EMA, on CPU (bf16 autocast) or a GPU."""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

# SAMPLES_RUNS names a folder that outlives the checkout.
RUNS = Path(os.environ.get("SAMPLES_RUNS") or Path(__file__).resolve().parents[2] / "runs")
Loss = Callable[[nn.Module, int, torch.Generator], Tensor]


def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def autocast() -> AbstractContextManager:
    return torch.autocast(device().type, dtype=torch.bfloat16)


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as two matrix products while training on a CPU.

    The fused kernel's backward pass is 2-8 times slower there at these sizes (16-64 channels a
    head); the values are the same up to rounding. Sampling keeps the stock kernel.
    """
    if device().type != "cpu":
        yield
        return
    fused = F.scaled_dot_product_attention

    def attention(
        query: Tensor, key: Tensor, value: Tensor, attn_mask: Tensor | None = None, **kwargs: Any
    ) -> Tensor:
        if attn_mask is not None or kwargs.get("is_causal") or kwargs.get("enable_gqa"):
            return fused(query, key, value, attn_mask=attn_mask, **kwargs)
        with torch.autocast("cpu", enabled=False):
            query, key, value = query.bfloat16(), key.bfloat16(), value.bfloat16()
            scores = (query * query.shape[-1] ** -0.5) @ key.transpose(-1, -2)
            return scores.softmax(-1) @ value

    F.scaled_dot_product_attention = attention
    try:
        yield
    finally:
        F.scaled_dot_product_attention = fused


def compile_blocks(model: nn.Module) -> None:
    """Compile every block of the denoisers: 1.4 to 1.8 times faster steps on a CPU."""
    for name, module in model.named_modules():
        if isinstance(module, nn.ModuleList) and name.endswith("blocks"):
            for block in module:
                block.compile(dynamic=False)


def _wait_while_paused() -> float:
    """Sleep while the file named by SHAPES_PAUSE_FILE exists; returns the seconds slept."""
    start = time.time()
    path = os.environ.get("SHAPES_PAUSE_FILE")
    while path and os.path.exists(path):
        time.sleep(1)
    return time.time() - start


@contextmanager
def _asked_to_stop() -> Iterator[threading.Event]:
    """An event that SIGTERM sets within a `with` block, so that a step is finished and saved."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return
    before = signal.signal(signal.SIGTERM, lambda *_: event.set())
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, before)


def _optimisers(
    model: nn.Module, rate: float, muon: bool, muon_rate: float
) -> list[torch.optim.Optimizer]:
    """AdamW for everything, or Muon for the matrices inside the blocks where `muon` is set."""
    matrices, rest = [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        # Embedding tables and the layers at both ends are not what Muon is made for.
        inside = "blocks." in name and "emb" not in name and parameter.ndim == 2
        (matrices if muon and inside and "table" not in name else rest).append(parameter)
    result: list[torch.optim.Optimizer] = [
        torch.optim.AdamW(rest, lr=rate, betas=(0.9, 0.98), weight_decay=0.0)
    ]
    if matrices:
        result.append(
            torch.optim.Muon(
                matrices, lr=muon_rate, weight_decay=0.0, adjust_lr_fn="match_rms_adamw"
            )
        )
    return result


class Run:
    """One model in training: weights, EMA, optimisers, randomness, step count and loss log.

    Args:
        name: folder under `runs/`.
        model: the modules to train, as one module.
        prepare: called with the model when nothing is stored yet.
        rate: AdamW learning rate (Muon uses it too, times `muon_factor`).
        muon: train the blocks' matrices with Muon.
        decay: of the averaged weights.
        compiled: compile the blocks of the denoisers.
        seed: of the data and the noise, used when nothing is stored yet.
    """

    def __init__(
        self,
        name: str,
        model: nn.Module,
        prepare: Callable[[nn.Module], None] | None = None,
        *,
        rate: float = 1e-3,
        muon: bool = False,
        muon_factor: float = 1.0,
        decay: float = 0.999,
        compiled: bool = False,
        seed: int = 0,
    ) -> None:
        self.folder = RUNS / name
        self.folder.mkdir(parents=True, exist_ok=True)
        self.model = model.to(device())
        self.path = self.folder / "state.pt"
        if prepare is not None and not self.path.exists():
            prepare(self.model)
        self.decay = decay
        if compiled:
            compile_blocks(self.model)
        self.optimisers = _optimisers(self.model, rate, muon, rate * muon_factor)
        self.rates = [o.param_groups[0]["lr"] for o in self.optimisers]
        self.ema = {k: v.detach().clone() for k, v in self.model.state_dict().items()}
        self.generator = torch.Generator().manual_seed(seed)
        self.step = self.started = 0  # started: where the optimisers were new
        self.seconds = 0.0
        self.log: list[tuple[int, float, float]] = []
        if self.path.exists():
            self._load()

    def _load(self) -> None:
        state = torch.load(self.path, map_location=device(), weights_only=True)
        self.model.load_state_dict(state["model"])
        self.ema = state["ema"]
        self.step, self.seconds = state["step"], state["seconds"]
        self.log = [tuple(row) for row in state["log"]]
        self.started = self.step
        if "optimisers" not in state:  # made by revive.py
            return
        self.started = state["started"]
        for optimiser, stored in zip(self.optimisers, state["optimisers"], strict=True):
            rate = optimiser.param_groups[0]["lr"]
            optimiser.load_state_dict(stored)
            optimiser.param_groups[0]["lr"] = rate
        self.generator.set_state(state["generator"].cpu())
        torch.set_rng_state(state["torch"].cpu())

    def save(self) -> None:
        state = {
            "model": self.model.state_dict(),
            "ema": self.ema,
            "optimisers": [o.state_dict() for o in self.optimisers],
            "generator": self.generator.get_state(),
            "torch": torch.get_rng_state(),
            "step": self.step,
            "started": self.started,
            "seconds": self.seconds,
            "log": [list(row) for row in self.log],
        }
        temporary = self.path.with_suffix(".tmp")
        torch.save(state, temporary)
        temporary.replace(self.path)
        (self.folder / "log.json").write_text(
            json.dumps({"step": self.step, "minutes": self.seconds / 60, "loss": self.log})
        )

    def _set_rate(self, factor: float) -> None:
        for optimiser, rate in zip(self.optimisers, self.rates, strict=True):
            optimiser.param_groups[0]["lr"] = rate * factor

    def train(
        self,
        loss_of: Loss,
        minutes: float,
        *,
        anneal: bool = False,
        warmup: int = 100,
        until: int | None = None,
    ) -> None:
        """Train for `minutes` of wall-clock time, then save; also saves once a minute.

        SIGTERM ends it early, after the step that is under way.

        Args:
            loss_of: gives the loss for (model, step, generator).
            minutes: length of this session, pauses not counted.
            anneal: let the learning rate fall to 5 % over this session, or up to `until`.
            warmup: steps of rising learning rate at the very beginning.
            until: train up to this step in place of `minutes`.
        """
        start, saved, shown = time.time(), time.time(), 0.0

        def progress() -> float:
            if until is None:
                return (time.time() - start) / (minutes * 60)
            return (self.step - self.started) / max(until - self.started, 1)

        bar = tqdm(desc=self.folder.name, initial=self.step, unit="step", mininterval=10)
        with _asked_to_stop() as stop:
            while (done := progress()) < 1 and not stop.is_set():
                start += _wait_while_paused()
                began = time.time()
                factor = min(1.0, (self.step - self.started + 1) / warmup)
                if anneal:
                    factor *= 1 - 0.95 * done
                loss = self._learn(loss_of, factor)
                self.seconds += time.time() - began
                shown = loss if not shown else 0.98 * shown + 0.02 * loss
                bar.update()
                if self.step % 20 == 0:
                    bar.set_postfix(loss=f"{shown:.4f}")
                    self.log.append((self.step, self.seconds, round(shown, 5)))
                if time.time() - saved > 60:
                    self.save()
                    saved = time.time()
        bar.close()
        self.save()

    def _learn(self, loss_of: Loss, factor: float) -> float:
        """One step at the learning rate times `factor`; returns the loss."""
        self._set_rate(factor)
        with autocast(), plain_attention():
            loss = loss_of(self.model, self.step, self.generator)
        if not torch.isfinite(loss):
            raise ValueError(f"loss is {loss.item()} at step {self.step}: lower the rate")
        loss.backward()
        nn.utils.clip_grad_norm_(self.model.parameters(), 1.0)
        for optimiser in self.optimisers:
            optimiser.step()
            optimiser.zero_grad(set_to_none=True)
        self._update_ema()
        self.step += 1
        return loss.item()

    @torch.no_grad()
    def _update_ema(self) -> None:
        decay = min(self.decay, (1 + self.step) / (10 + self.step))
        state = self.model.state_dict()
        floats = [k for k, v in state.items() if v.is_floating_point()]
        torch._foreach_lerp_([self.ema[k] for k in floats], [state[k] for k in floats], 1 - decay)


def averaged(name: str, model: nn.Module) -> nn.Module:
    """`model` with the averaged weights of the run `name`, in eval mode.

    Raises:
        FileNotFoundError: nothing has been trained under that name.
    """
    path = RUNS / name / "state.pt"
    if not path.exists():
        raise FileNotFoundError(f"{name} is not trained: python samples/train/train.py {name}")
    state = torch.load(path, map_location=device(), weights_only=True)
    model.to(device()).load_state_dict(state["ema"])
    return model.eval()
