"""Parallel denoising, in the manner of LightningCP (arXiv 2509.00052): steps run side by side."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar

import torch
import torch.distributed as dist
from torch import Tensor

from ..config import CallConfig, Example, method, require
from ..core.calls import as_tensor, has_conditions
from ..core.denoising.tracker import DenoisingStep
from ..core.outputs import form_of, tensors_of
from ..core.patching import PatchLedger
from ..errors import ConfigError, UnsupportedError, UsageError
from .engine.ahead import foreseen, repeated, timesteps_as_given
from .engine.method import CallLog, CallMethod, Site, TransformerCall

_OWN_STEPS = "each of the two methods decides which steps are computed"
# Timesteps that are assumed may differ from those that come by this, or by what their dtype rounds.
_SAME_TIMESTEP = 1e-3


@method("parallel_denoising", paper="2509.00052")
@dataclass(frozen=True, kw_only=True)
class ParallelDenoisingConfig(CallConfig):
    """Several steps run side by side on foreseen latents, and each is checked before it is used.

    When a step has to be computed, the latents of the next steps are foreseen from those so far,
    and the transformer computes all of them at once: in one batch, or one per process. Later steps
    are answered from that, as long as the latents that come differ by at most `tolerance` from
    those that were foreseen; the first that does not begins the next round (a Picard iteration over
    a window that starts from a forecast). LightningCP's own code was not read.

    It saves waiting, never work: rounds take `window` times the computation of a step. It pays on a
    device that one step does not fill (small pictures on a large GPU), or on as many devices as
    `window`, where a round takes less than the steps that it answers. A CPU is full with one step
    of all but the smallest models: it gains nothing on shapes-flux, and takes over twice as long as
    dense on shapes-wan (eval/README.md, "Call methods").

    What an answer is: the transformer's own output at latents that differ by at most `tolerance`
    from those that came, at a timestep that differs by its rounding at most (bfloat16 keeps two to
    three digits). In a batch it is so up to the rounding of batched kernels; one per process it is
    bit for bit.

    Args:
        window: steps of a round, >= 2; None for the number of processes, or 4 in a batch.
        tolerance: largest difference of latents, by their size (root mean square). At 0 every step
            is computed by itself, bit for bit as without this method.
        warmup: first steps that are computed one by one, >= 2: a forecast takes two.
        processes: share the rounds among all processes of `torch.distributed`, each of which runs
            the same call (prompt and seed) on its own device; else a round is one batch.
    """

    excludes: ClassVar[Mapping[str, str]] = MappingProxyType(
        {
            "cache": _OWN_STEPS,
            "attention": "the samples of a round are at different steps, which a tile map is not",
        }
    )

    window: int | None = None
    tolerance: float = 0.02
    warmup: int = 3
    processes: bool = False

    def __post_init__(self) -> None:
        require(
            self.window is None or self.window >= 2,
            f"window is {self.window}; give 2 or more steps, or None",
        )
        require(
            0.0 <= self.tolerance < float("inf"),
            f"tolerance is {self.tolerance}; it must be 0 (exact) or a positive number",
        )
        require(self.warmup >= 2, f"warmup is {self.warmup}; a forecast takes 2 steps or more")

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        return (Example(cls(tolerance=0.0), cls(window=2, tolerance=1e9, warmup=2)),)

    def call_method(self) -> ParallelDenoising:
        """What carries the calls out."""
        return ParallelDenoising(self)


@dataclass(frozen=True)
class _Answer:
    """What was computed ahead for a step: the latents and timestep assumed, and the output."""

    latents: Tensor
    timestep: float
    output: Tensor


@dataclass
class _Branch:
    """What is remembered of a branch.

    Attributes:
        inputs: step -> latents as they were given.
        timesteps: step -> timestep as it was given.
        ahead: step -> what was computed for it.
        others: all arguments but latents and timestep, as they were in the round.
        form: makes an output of the transformer's of a tensor.
        opaque: whether the transformer returned more than latents, so that no round is of use.
    """

    inputs: dict[int, Tensor] = field(default_factory=dict)
    timesteps: dict[int, float] = field(default_factory=dict)
    ahead: dict[int, _Answer] = field(default_factory=dict)
    others: dict[str, Any] = field(default_factory=dict)
    form: Callable[[Sequence[Tensor]], Any] | None = None
    opaque: bool = False


class ParallelDenoising(CallMethod):
    """Computes rounds of steps, and answers calls from them."""

    outside = True
    _why = ""

    def __init__(self, config: ParallelDenoisingConfig) -> None:
        super().__init__()
        self._config = config

    @property
    def _ranks(self) -> int:
        """Processes that share a round; 1 for a batch."""
        return dist.get_world_size() if self._config.processes else 1

    @property
    def _window(self) -> int:
        window = self._config.window
        return window or (self._ranks if self._config.processes else 4)

    def attach(self, site: Site, ledger: PatchLedger) -> None:
        """See `CallMethod`."""
        config = self._config
        self.site = site
        self.log = CallLog(site.name, config.method, "of the calls were waited for")
        if site.adapter.second_stream is not None:
            raise UnsupportedError(
                f"{type(site.transformer).__name__} has two streams of latents, which "
                "parallel_denoising does not foresee; use a caching method"
            )
        if config.processes and not (dist.is_available() and dist.is_initialized()):
            raise UsageError(
                "processes=True needs torch.distributed: start the script with torchrun and call "
                "torch.distributed.init_process_group() first, or leave it out"
            )
        if config.processes and self._window > self._ranks:
            raise ConfigError(
                f"window is {self._window}, but there are {self._ranks} processes, which compute "
                "one step each; give at most as many, or start more processes"
            )

    def begin_generation(self, step: DenoisingStep) -> None:
        """See `CallMethod`.

        Raises:
            ConfigError: there are more processes than steps.
        """
        self._why = ""
        if self._config.processes and step.total is not None and self._ranks > step.total:
            raise ConfigError(
                f"{self._ranks} processes are more than the {step.total} steps of this call, so "
                "that some would never compute one; start fewer, or use more steps"
            )

    def nothing_changed(self) -> str:
        """See `CallMethod`."""
        if self._config.tolerance == 0:
            return ""
        why = self._why or (
            f"latents were never foreseen to within tolerance={self._config.tolerance:g}; raise "
            "it, use more steps, or leave parallel_denoising out, as rounds cost time"
        )
        return f"no call of a whole generation was answered ahead: {why}"

    def carry_out(self, call: TransformerCall) -> Any:
        """See `CallMethod`."""
        step, named, adapter = call.step, call.named, self.site.adapter
        timestep = _number(named[adapter.timestep])
        rounding = _rounding(named[adapter.timestep])
        if self._config.tolerance == 0 or timestep is None:
            self._why = "samples or tokens have timesteps of their own" if timestep is None else ""
            return self._alone(call)
        if not all(_is_plain(value) for value in named.values()):
            self._why = "the transformer is handed objects that keep something between calls"
            return self._alone(call)
        if has_conditions(named[adapter.sample]):
            self._why = "condition images come with the latents"
            return self._alone(call)
        latents = as_tensor(named[adapter.sample]).detach()
        branch: _Branch = self._states.setdefault(step.branch, _Branch())
        former = branch.inputs.get(step.index - 1)
        if former is not None and former.shape != latents.shape:
            branch = self._states[step.branch] = _Branch()
        branch.inputs[step.index], branch.timesteps[step.index] = latents.clone(), timestep
        answer = branch.ahead.pop(step.index, None)
        others = {k: v for k, v in named.items() if k not in (adapter.sample, adapter.timestep)}
        fits = answer is not None and self._fits(answer, latents, timestep, rounding)
        if answer is not None and branch.form is not None and fits:
            if _same(branch.others, others):
                self.log.add(True, 0.0)
                self.changed = True
                return branch.form([answer.output.clone()])
            self._why = "other arguments of the calls change from step to step (a ControlNet?)"
        branch.ahead.clear()
        branch.others = others
        found = self._next(branch, step, rounding)
        if not found:
            return self._alone(call)
        return self._round(call, branch, [(latents, timestep), *found])

    def _alone(self, call: TransformerCall) -> Any:
        self.log.add(False)
        return call.dense()

    def _fits(self, answer: _Answer, latents: Tensor, timestep: float, rounding: float) -> bool:
        """Whether what was assumed is close enough to what came; waits for the device."""
        apart = max(_SAME_TIMESTEP * max(1.0, abs(timestep)), rounding * abs(timestep))
        if abs(answer.timestep - timestep) > apart:
            return False
        error = (latents.float() - answer.latents.float()).square().mean()
        size = latents.float().square().mean()
        return bool(error.sqrt() <= self._config.tolerance * size.sqrt())

    def _next(
        self, branch: _Branch, step: DenoisingStep, rounding: float
    ) -> list[tuple[Tensor, float]]:
        """Latents and timesteps of the next steps of a round; none where nothing is foreseen."""
        schedule, index = step.schedule, step.index
        end = step.total if step.end is None else step.end
        if branch.opaque or index < self._config.warmup or index - 1 not in branch.inputs:
            return []
        if schedule is None or end is None or schedule.stages > 1:
            self._why = "the steps to come are not known, or take several calls each"
            return []
        count = min(self._window - 1, end - 1 - index)
        if count < 1:
            return []
        timesteps = timesteps_as_given(branch.timesteps, schedule, index, count, rounding)
        if timesteps is None:
            self._why = "the timesteps to come are not known"
            return []
        latents = foreseen(branch.inputs, schedule, index, count)
        return list(zip(latents, timesteps, strict=True))

    def _round(
        self, call: TransformerCall, branch: _Branch, steps: list[tuple[Tensor, float]]
    ) -> Any:
        """Compute steps side by side; the first is the call itself, the others are kept."""
        self.log.add(False)
        if self._config.processes:
            return self._shared(call, branch, steps)
        adapter, named = self.site.adapter, call.named
        batch, count = len(steps[0][0]), len(steps)
        changes = {key: repeated(value, batch, count) for key, value in named.items()}
        latents = torch.cat([each for each, _ in steps])
        listed = isinstance(named[adapter.sample], (list, tuple))
        changes[adapter.sample] = list(latents.unbind()) if listed else latents
        given = named[adapter.timestep]
        given = given if isinstance(given, Tensor) else torch.tensor(given, device=latents.device)
        made = [_like(given.expand(batch), level) for _, level in steps]
        changes[adapter.timestep] = torch.cat(made)
        output = call.changed(changes)
        outputs = tensors_of(output)[0].chunk(count)
        branch.form = form_of(output, given=tuple(changes.values()))
        return self._taken(call, branch, steps, outputs)

    def _shared(
        self, call: TransformerCall, branch: _Branch, steps: list[tuple[Tensor, float]]
    ) -> Any:
        """A round with one step per process; each gets the outputs of all."""
        adapter, named, here = self.site.adapter, call.named, dist.get_rank()
        self._check_same(steps[0][0])
        latents, level = steps[here if here < len(steps) else 0]
        listed = isinstance(named[adapter.sample], (list, tuple))
        given = named[adapter.timestep]
        changes = {
            adapter.sample: list(latents.unbind()) if listed else latents,
            adapter.timestep: _like(given, level)
            if isinstance(given, Tensor)
            else type(given)(round(level) if isinstance(given, int) else level),
        }
        output = call.dense() if here == 0 else call.changed(changes)
        own = tensors_of(output)[0].contiguous()
        branch.form = form_of(output, given=tuple(named.values()))
        outputs = [torch.empty_like(own) for _ in range(self._ranks)]
        dist.all_gather(outputs, own)
        return self._taken(call, branch, steps, outputs)

    def _taken(
        self,
        call: TransformerCall,
        branch: _Branch,
        steps: list[tuple[Tensor, float]],
        outputs: Sequence[Tensor],
    ) -> Any:
        """The output of the call itself out of those of a round; the others are kept."""
        if branch.form is None:
            branch.opaque, self._why = True, "the transformer returns more than latents"
            return call.dense()
        for ahead, ((latents, level), made) in enumerate(zip(steps, outputs, strict=False)):
            if ahead:
                index = call.step.index + ahead
                branch.ahead[index] = _Answer(latents, level, made.clone())
        return branch.form([outputs[0]])

    def _check_same(self, latents: Tensor) -> None:
        """Refuse processes that make different calls: their steps have nothing in common."""
        mark = latents.double().sum().reshape(1)
        marks = [torch.empty_like(mark) for _ in range(self._ranks)]
        dist.all_gather(marks, mark)
        if any(not torch.equal(each, mark) for each in marks):
            raise UsageError(
                "the processes have different latents: with processes=True all of them must run "
                "the same call, with the same prompt and seed"
            )


def _number(timestep: Any) -> float | None:
    """The timestep of a call as a number; None where samples or tokens have their own."""
    if not isinstance(timestep, Tensor):
        return float(timestep)
    if timestep.ndim > 1 or bool((timestep != timestep.reshape(-1)[0]).any()):
        return None
    return float(timestep.reshape(-1)[0])


def _rounding(timestep: Any) -> float:
    """By how much a timestep may have been rounded twice, as it was made and as it was scaled."""
    floats = isinstance(timestep, Tensor) and timestep.is_floating_point()
    return torch.finfo(timestep.dtype).eps if floats else 0.0


def _like(given: Tensor, level: float) -> Tensor:
    """A timestep in the form of the one that was given."""
    return torch.full_like(given, level if given.is_floating_point() else round(level))


def _is_plain(value: Any) -> bool:
    """Whether an argument is data, which can be given to several calls at once."""
    if isinstance(value, dict):
        return all(map(_is_plain, value.values()))
    if isinstance(value, (list, tuple)):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, (bool, int, float, str, Tensor))


def _same(former: Any, now: Any) -> bool:
    """Whether two arguments are the same data; waits for the device where they are not one."""
    if former is now:
        return True
    if isinstance(former, Tensor) and isinstance(now, Tensor):
        return former.shape == now.shape and torch.equal(former, now)
    if isinstance(former, dict) and isinstance(now, dict):
        return former.keys() == now.keys() and all(_same(former[k], now[k]) for k in now)
    if isinstance(former, (list, tuple)) and isinstance(now, (list, tuple)):
        return len(former) == len(now) and all(map(_same, former, now))
    return bool(type(former) is type(now) and former == now)
