"""What fine-tuning learns from: transformer calls of the dense pipeline, and what they returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..config import require
from ..core._compat import ContextListener
from ..core.calls import Arguments, as_tensor
from ..core.denoising.tracker import DenoisingStep, DenoisingTracker
from ..core.kinds import denoised, free_hooks, pictures_of
from ..core.outputs import tensors_of
from ..core.patching import PatchLedger
from ..errors import ConfigError, UnsupportedError
from ..pipelines import FamilyAdapter


@dataclass(frozen=True, eq=False)
class Call:
    """One transformer call.

    Attributes:
        component: the transformer's name.
        args: of the call.
        kwargs: of the call.
        step: where it stands.
    """

    component: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    step: DenoisingStep


@dataclass(frozen=True, eq=False)
class TeacherCall(Call):
    """One transformer call of a dense run; tensors are on the CPU.

    Attributes:
        target: what the dense transformer returned, `(B, …)`.
    """

    target: Tensor


# Decides what a transformer call returns, from the call and what runs it as it is.
Around = Callable[[Call, Callable[[], Any]], Any]


class _Enough(BaseException):
    """Ends a pipeline call whose first step was all that was wanted.

    It is not an `Exception`: blocks of modular pipelines log those, with their traceback.
    """


def moved(value: Any, device: torch.device | str) -> Any:
    """Tensors in a value, on a device."""
    if isinstance(value, Tensor):
        return value.detach().to(device)
    if isinstance(value, (list, tuple)):
        return type(value)(moved(v, device) for v in value)
    if isinstance(value, dict):
        return {k: moved(v, device) for k, v in value.items()}
    return value


class Teacher:
    """Runs the dense pipeline and writes its transformer calls down.

    Args:
        pipe: the pipeline; its own attention must be on while this runs.
        transformers: its transformers by component name.
        adapter: their family.
        call: arguments of every pipeline call.
    """

    def __init__(
        self,
        pipe: Any,
        transformers: Mapping[str, nn.Module],
        adapter: FamilyAdapter,
        call: Mapping[str, Any],
    ) -> None:
        self._pipe, self._transformers, self._adapter = pipe, transformers, adapter
        self._call = dict(call)
        self._arguments = {name: Arguments(t) for name, t in transformers.items()}

    def sample(self, call: Call) -> Tensor:
        """The latents that a call was given."""
        found = self._arguments[call.component].get(self._adapter.sample, call.args, call.kwargs)
        return as_tensor(found)

    def named(self, call: Call) -> dict[str, Any]:
        """The arguments of a call by name."""
        return self._arguments[call.component].named(call.args, call.kwargs)

    def first_call(self, item: Any, seed: int) -> TeacherCall:
        """The first transformer call for one item of the data; latents that it holds are not used.

        Raises:
            ConfigError: the pipeline calls no transformer.
        """
        arguments = {"prompt": item} if isinstance(item, str) else dict(item)
        arguments.pop("latents", None)
        generator = torch.Generator().manual_seed(seed)
        found = self._recorded(arguments, generator, lambda step: True, first_only=True)
        require(bool(found), "the pipeline called no transformer; check the arguments of the call")
        return found[0]

    def calls(self, item: Any, seed: int, wanted: Callable[[DenoisingStep], bool]) -> list[Any]:
        """Transformer calls for one item of the data.

        Args:
            item: a prompt, or arguments of the pipeline call; with `latents`, clean latents in the
                form that the transformer is given, noised to levels of the schedule.
            seed: of the noise.
            wanted: which steps are worth keeping.

        Raises:
            ConfigError: an item or its latents have the wrong form.
        """
        arguments = {"prompt": item} if isinstance(item, str) else dict(item)
        latents = arguments.pop("latents", None)
        generator = torch.Generator().manual_seed(seed)
        if latents is None:
            return self._recorded(arguments, generator, wanted, first_only=False)
        templates = self._recorded(arguments, generator, lambda step: True, first_only=True)
        return list(self._noised(templates, latents, generator, wanted))

    def _recorded(
        self,
        arguments: dict[str, Any],
        generator: torch.Generator,
        wanted: Callable[[DenoisingStep], bool],
        first_only: bool,
    ) -> list[TeacherCall]:
        found: list[TeacherCall] = []

        def around(call: Call, inner: Callable[[], Any]) -> Any:
            if first_only and call.step.index > 0:
                raise _Enough
            output = inner()
            if wanted(call.step):
                parts = moved(call.args, "cpu"), moved(call.kwargs, "cpu"), call.step
                target = moved(tensors_of(output)[0], "cpu")
                found.append(TeacherCall(call.component, *parts, target))
            return output

        self._run(arguments, generator, around)
        return found

    def follow(self, item: Any, seed: int, around: Around) -> Any:
        """Run the pipeline for one item of the data, for students that learn along a generation.

        Args:
            item: a prompt, or arguments of the pipeline call.
            seed: of the noise.
            around: called in place of each transformer call, with the call and with what runs it;
                the pipeline continues with what it returns. No gradient is on meanwhile.

        Returns:
            Its last latents, or its pictures where it has no way to leave them undecoded.
        """
        arguments = {"prompt": item} if isinstance(item, str) else dict(item)
        arguments.pop("latents", None)
        output = self._run(arguments, torch.Generator().manual_seed(seed), around)
        return pictures_of(self._pipe, output)

    def _run(self, arguments: dict[str, Any], generator: torch.Generator, around: Around) -> Any:
        with torch.no_grad(), self._watched(around):
            options = {**self._call, **arguments, "generator": generator}
            options = {**denoised(self._pipe), **options}
            try:
                return self._pipe(**options)
            except _Enough:
                # diffusers' cache contexts and offloading hooks close themselves on the way out
                free_hooks(self._pipe)
                return None

    @contextmanager
    def _watched(self, decide: Around) -> Iterator[None]:
        tracker, ledger = DenoisingTracker(self._pipe), PatchLedger(owner=self)

        def intercept(name: str, transformer: nn.Module) -> None:
            listener = ContextListener(transformer)
            ledger.on_undo(listener.detach)
            arguments = self._arguments[name]

            def around(inner: Callable[..., Any], args: tuple[Any, ...], kwargs: Any) -> Any:
                timestep = self._adapter.timestep_in(arguments.named(args, kwargs))
                step = tracker.observe(name, timestep, listener.current())
                return decide(Call(name, args, kwargs, step), lambda: inner(*args, **kwargs))

            ledger.intercept(transformer, around)

        try:
            for name, transformer in self._transformers.items():
                intercept(name, transformer)
            yield
        finally:
            ledger.undo()

    def _noised(
        self,
        templates: list[TeacherCall],
        latents: Any,
        generator: torch.Generator,
        wanted: Callable[[DenoisingStep], bool],
    ) -> Iterator[TeacherCall]:
        """A call per branch and wanted step, with fresh noise and the dense output."""
        require(bool(templates), "the pipeline called no transformer; check the item's arguments")
        require(isinstance(latents, Tensor), f"latents are {type(latents).__name__}, not a tensor")
        scheduler = self._pipe.scheduler
        noise_to = getattr(scheduler, "scale_noise", None) or getattr(scheduler, "add_noise", None)
        if noise_to is None:
            raise UnsupportedError(
                f"{type(scheduler).__name__} cannot noise latents to a step; leave latents out"
            )
        timesteps = scheduler.timesteps.detach().cpu()
        for index, timestep in enumerate(timesteps):
            noise = torch.randn(latents.shape, generator=generator)
            step = replace(templates[0].step, index=index, timestep=float(timestep))
            if not wanted(step):
                continue
            noised = noise_to(latents.float(), timestep[None], noise)
            for template in templates:
                yield self._with_sample(template, noised, step, float(timestep / timesteps[0]))

    def _with_sample(
        self, template: TeacherCall, noised: Tensor, step: DenoisingStep, factor: float
    ) -> TeacherCall:
        given = self.sample(template)
        if noised.shape[1:] != given.shape[1:] or given.shape[0] % noised.shape[0]:
            raise ConfigError(
                f"latents of the data are {tuple(noised.shape)}, but {template.component} is given "
                f"{tuple(given.shape)}; hand over clean latents as the transformer sees them, or "
                "change height, width and num_frames of the call"
            )
        arguments = self._arguments[template.component]
        known = arguments.get(self._adapter.timestep, template.args, template.kwargs)
        names = (self._adapter.sample, self._adapter.timestep)
        if not isinstance(known, Tensor) or any(name not in template.kwargs for name in names):
            raise UnsupportedError(
                f"{template.component} gets latents and timestep in a form that data with latents "
                "does not know; leave latents out"
            )
        repeated = noised.repeat(given.shape[0] // noised.shape[0], *[1] * (noised.ndim - 1))
        kwargs = {
            **template.kwargs,
            names[0]: repeated.to(given.dtype),
            names[1]: (known.double() * factor).to(known.dtype),
        }
        made = replace(template, kwargs=kwargs, step=replace(step, branch=template.step.branch))
        with torch.no_grad():
            return replace(made, target=moved(self.output(made), "cpu"))

    def output(self, call: Call) -> Tensor:
        """What the transformer returns for a call as it is now, `(B, …)`."""
        transformer = self._transformers[call.component]
        device = next(transformer.parameters()).device
        output = transformer(*moved(call.args, device), **moved(call.kwargs, device))
        return tensors_of(output)[0]
