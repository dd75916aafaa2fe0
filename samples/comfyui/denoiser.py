"""A ComfyUI model as ditaccel sees it: a bare transformer in a sampling loop with known levels.

ComfyUI has model code of its own, so nothing inside the model is touched. What is forecast is what
the whole model returns, and ComfyUI's `model_function_wrapper` is where that is possible: it is
called in place of `apply_model(x, sigma, **c)`, which returns the denoised latents `x0`. A sampler
of Euler's kind moves the latents by `(sigma_next - sigma) * (x - x0) / sigma`; that derivative is
the "output" whose course over the steps is smooth, and which is forecast here.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from ditaccel.pipelines.adapter import adaptive_presets

import ditaccel

ADAPTER = ditaccel.FamilyAdapter(
    "comfyui", transformers=("Denoiser",), blocks=(), presets=adaptive_presets()
)


class Denoiser(torch.nn.Module):
    """Calls ComfyUI's model; returns the derivative of the latents by the noise level."""

    def forward(
        self,
        hidden_states: torch.Tensor,
        timestep: torch.Tensor,
        encoder_hidden_states: Any,
        apply: Callable[..., torch.Tensor],
        rest: Mapping[str, Any],
    ) -> tuple[torch.Tensor]:
        """One call.

        Args:
            hidden_states: latents `(B, C, [T,] H, W)` at this noise level.
            timestep: noise level of each sample, `(B,)`, above 0.
            encoder_hidden_states: what the call is conditioned on; tells branches apart.
            apply: ComfyUI's `apply_model`, or the wrapper that was there before.
            rest: its further arguments.
        """
        denoised = apply(hidden_states, timestep, **rest)
        return ((hidden_states - denoised) / _as_column(timestep, hidden_states),)


def _as_column(sigma: torch.Tensor, like: torch.Tensor) -> torch.Tensor:
    return sigma.to(like.dtype).reshape(-1, *[1] * (like.ndim - 1))


class Accelerated:
    """The `model_function_wrapper` of one model: a cache around its calls.

    Args:
        setting: preset, config file or spec, as `ditaccel.accelerate` takes it.
        euler: whether the sampler takes Euler's steps; then what forecasts leave in the latents is
            corrected, else it is not.
        before: the wrapper that was on the model.
    """

    def __init__(self, setting: str, euler: bool = True, before: Any = None) -> None:
        self.setting, self.euler, self.before = setting, euler, before
        self.denoiser = Denoiser()
        self.levels: Any = None
        self.last, self.ran, self.warned = float("inf"), False, False
        options = {} if euler else {"correction": "never"}
        # A wrong setting is refused when the graph is built, and not in the middle of a run.
        with ditaccel.accelerated(self.denoiser, setting, adapter=ADAPTER, **options):
            pass
        self.options = options

    def __call__(self, apply_model: Callable[..., torch.Tensor], args: Mapping[str, Any]) -> Any:
        """What ComfyUI calls in place of `apply_model(input, timestep, **c)`."""
        x, sigma, c = args["input"], args["timestep"], args["c"]
        before = self.before

        def apply(x: torch.Tensor, sigma: torch.Tensor, **c: Any) -> torch.Tensor:
            if before is None:
                return apply_model(x, sigma, **c)
            return before(apply_model, {**args, "input": x, "timestep": sigma, "c": c})

        levels = c.get("transformer_options", {}).get("sample_sigmas")
        if levels is None:
            self._warn_of_unknown_levels()
        if levels is None or float(sigma.min()) <= 0:  # (no derivative at 0)
            return apply(x, sigma, **c)
        self._follow(levels, float(sigma.max()))
        # Both guidance branches may come in one batch or one after the other; the order tells
        # them apart where two prompts are the same.
        words = [c.get("c_crossattn"), c.get("y"), list(args.get("cond_or_uncond", ()))]
        words = [part for part in words if part is not None]
        (derivative,) = self.denoiser(
            hidden_states=x, timestep=sigma, encoder_hidden_states=words, apply=apply, rest=c
        )
        return x - _as_column(sigma, x) * derivative

    def _warn_of_unknown_levels(self) -> None:
        if not self.warned:
            line = "ditaccel: this sampler does not tell its noise levels; nothing is skipped"
            warnings.warn(line, stacklevel=2)
        self.warned = True

    def _follow(self, levels: torch.Tensor, sigma: float) -> None:
        """Begin again where a sampler does: at other noise levels, or at a higher one."""
        if levels is not self.levels or sigma > self.last:
            self.close()
            sigmas = [float(level) for level in levels]
            ditaccel.accelerate(
                self.denoiser, self.setting, adapter=ADAPTER, sigmas=sigmas, **self.options
            )
            self.levels, self.ran = levels, True
        self.last = sigma

    def close(self) -> None:
        """Free what the cache holds; the report stays."""
        ditaccel.restore(self.denoiser)
        self.levels, self.last = None, float("inf")

    def report(self) -> str:
        """What was skipped in the last run."""
        if not self.ran:
            return "ditaccel: the model has not been sampled yet"
        return str(ditaccel.report(self.denoiser))
