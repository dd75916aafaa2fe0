"""Another scheduler for a pipeline, by the short name that people use (`--scheduler unipc`)."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from ..core.denoising.schedulers import is_flow
from ..core.kinds import is_modular, put_part
from ..errors import UnsupportedError
from .given import suggest


@dataclass(frozen=True)
class Choice:
    """A scheduler of diffusers.

    Attributes:
        noise: its class for models that predict noise, empty where there is none.
        flow: its class for flow-matching models, empty where there is none.
        options: of both.
    """

    noise: str
    flow: str
    options: Mapping[str, Any] = field(default_factory=dict)


_DPM = "DPMSolverMultistepScheduler"
_PLUS = {"algorithm_type": "dpmsolver++"}
SCHEDULERS: Mapping[str, Choice] = {
    "euler": Choice("EulerDiscreteScheduler", "FlowMatchEulerDiscreteScheduler"),
    "ddim": Choice("DDIMScheduler", ""),
    "unipc": Choice("UniPCMultistepScheduler", "UniPCMultistepScheduler", {"solver_order": 2}),
    "unipc3": Choice("UniPCMultistepScheduler", "UniPCMultistepScheduler", {"solver_order": 3}),
    "dpm++2m": Choice(_DPM, _DPM, {"solver_order": 2, **_PLUS}),
    "dpm++3m": Choice(_DPM, _DPM, {"solver_order": 3, **_PLUS}),
    "heun": Choice("HeunDiscreteScheduler", "FlowMatchHeunDiscreteScheduler"),
}


def put_scheduler(pipe: Any, name: str | None) -> None:
    """Give a pipeline another scheduler, which keeps the noise levels that the model knows.

    Args:
        pipe: the pipeline.
        name: of `SCHEDULERS`; None changes nothing.

    Raises:
        UnsupportedError: there is no such scheduler, or not for models of this kind, or the
            pipeline does not start from the noise that it needs, or its scheduler steps together
            with others.
    """
    if name is None:
        return
    check_scheduler(name)
    more = [n for n in getattr(pipe, "components", {}) if n.endswith("_scheduler")]
    if more:
        raise UnsupportedError(
            f"{type(pipe).__name__} takes its steps with {len(more) + 1} schedulers together "
            f"(scheduler, {', '.join(more)}), so that none of them can be exchanged alone"
        )
    made = _like(pipe.scheduler, name)
    if float(getattr(made, "init_noise_sigma", 1.0)) > 1.0 and not _asks_for_noise_level(pipe):
        raise UnsupportedError(
            f"{type(pipe).__name__} starts from noise of size 1 and steps the scaled latents, "
            f"whatever its scheduler is made for, so {name} would make other pictures there; use "
            "one that keeps latents at one size: ddim, unipc, dpm++2m"
        )
    put_part(pipe, "scheduler", made)


def _asks_for_noise_level(pipe: Any) -> bool:
    """Whether a pipeline scales its first noise as the scheduler wants it (DiT's does not)."""
    members = [member for base in type(pipe).__mro__ for member in vars(base).items()]
    if "__call__" not in dict(members) or is_modular(pipe):  # (its blocks do)
        return True
    methods = (inspect.unwrap(value) for _, value in members if callable(value))
    codes = (getattr(method, "__code__", None) for method in methods)
    return any(code is not None and "init_noise_sigma" in code.co_names for code in codes)


def check_scheduler(name: str | None) -> None:
    """Look whether there is a scheduler of a short name, or none is asked for.

    Raises:
        UnsupportedError: there is none.
    """
    if name is not None and name not in SCHEDULERS:
        raise UnsupportedError(
            f"there is no scheduler {name!r}{suggest(name, list(SCHEDULERS))}; known: "
            f"{', '.join(SCHEDULERS)} (any other one: a function that makes the pipeline)"
        )


@contextmanager
def with_scheduler(pipe: Any, name: str | None) -> Iterator[None]:
    """A pipeline with another scheduler for a while; see `put_scheduler`."""
    own = getattr(pipe, "scheduler", None)
    put_scheduler(pipe, name)
    try:
        yield
    finally:
        if name is not None:
            put_part(pipe, "scheduler", own)


def _like(scheduler: Any, name: str) -> Any:
    """A scheduler with the noise levels of another one."""
    import diffusers

    choice, flow = SCHEDULERS[name], is_flow(scheduler)
    kind = getattr(diffusers, choice.flow if flow else choice.noise, None)
    if kind is None:
        models = "flow-matching models" if flow else "models that predict noise"
        raise UnsupportedError(f"diffusers has no scheduler {name} for {models}")
    options = {k: v for k, v in scheduler.config.items() if not k.startswith("_")}
    if flow:
        shift = options.pop("flow_shift", None) or options.pop("shift", None) or 1.0
        # both spellings: flow-matching schedulers have the one, multistep ones the other
        options |= {"shift": shift, "flow_shift": shift}
        options |= {"use_flow_sigmas": True, "prediction_type": "flow_prediction"}
    taken = inspect.signature(kind.__init__).parameters
    return kind(**{k: v for k, v in {**options, **choice.options}.items() if k in taken})
