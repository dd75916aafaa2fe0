"""How the latents of a loop answer to the transformer's outputs.

A step of a deterministic scheduler is linear in the latents and in the outputs that it was given,
those that it remembers included. So every latent of a loop is a weighted sum of the outputs before
it and of the initial latents:

    x_j = sum_{i < j} R[j, i] v_i + R[j, C] x_0          for a loop of C calls

The weights are measured on a copy of the scheduler (`probing.py`), and nothing depends on the name
of its class.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from functools import lru_cache
from typing import Any

import numpy as np

# Schedules whose further figures are remembered.
_KEPT = 16
# Share of an output's largest weight that it must have in the end (UniPC of order 2: a half, at
# first a quarter; of order 3: a half and more).
_LASTING = 0.1


class Probed(Enum):
    """What probing a scheduler has shown.

    Attributes:
        LINEAR: its latents are weighted sums of outputs: there is a `Response`.
        STOCHASTIC: it draws noise (DDPM, ancestral, SDE and consistency samplers).
        NONLINEAR: it clips or thresholds.
        FAILED: it cannot be stepped as pipelines do, or gives NaN.
    """

    LINEAR = "linear"
    STOCHASTIC = "draws noise"
    NONLINEAR = "clips or thresholds"
    FAILED = "cannot be probed"


@dataclass(frozen=True, eq=False)
class Response:
    """Weights of all outputs, and of the initial latents, in all latents of a loop of C calls.

    A stage of a Heun-type step is a call of its own, as in the scheduler's timesteps.

    Attributes:
        latents: `(C + 1, C + 1)`, float64, read-only. Row j: the latents that go into call j,
            before `scale_model_input`; row C: those that the loop ends with. Column i < C: the
            output of call i, as the scheduler is given it; column C: the initial latents. Entries
            with i >= j are 0.
        input_scale: `(C,)`, what `scale_model_input` multiplies the latents of each call by.
    """

    latents: np.ndarray
    input_scale: np.ndarray

    def __post_init__(self) -> None:
        self.latents.setflags(write=False)
        self.input_scale.setflags(write=False)

    @property
    def calls(self) -> int:
        """Transformer calls of the loop, per branch."""
        return len(self.latents) - 1

    def end(self, i: int) -> float:
        """Change of the last latents per change of output i."""
        return float(self.latents[-1, i])

    def initial(self, j: int) -> float:
        """Weight of the initial latents in those before call j."""
        return float(self.latents[j, -1])

    def share(self, j: int) -> float:
        """How large an error that is 1 in the last latents is in the model input of call j.

        The outputs held fixed: 1 under flow matching, `1 / sqrt(1 + sigma^2)` under noise
        prediction.
        """
        first, last = self.initial(j), self.initial(self.calls)
        carried = first / last if abs(last) > 1e-6 * abs(first) else 1.0
        return carried * float(self.input_scale[j])

    def lasts(self, i: int) -> bool:
        """Whether output i weighs in the last latents what it weighs in those on the way, about.

        Else a correction of the last latents would throw the ones before them far off.
        """
        carried = self.latents[i + 1 :, -1]
        carried = np.where(np.abs(carried) > 1e-12, carried, 1.0)
        weights = np.abs(self.latents[i + 1 :, i] / carried)
        return bool(weights[-1] > _LASTING * weights.max())

    @property
    def is_plain(self) -> bool:
        """Whether steps leave latents as they are, but for what they add, and so does the input."""
        same = np.allclose(self.latents[:, -1], 1.0, atol=1e-4)
        return same and np.allclose(self.input_scale, 1.0, atol=1e-4)

    @property
    def keeps_outputs(self) -> bool:
        """Whether a step uses more than its latents and its output (multistep, Heun)."""
        table = self.latents
        for j in range(1, self.calls):
            now, after = table[j], table[j + 1].copy()
            after[j] = 0.0
            factor = float(after @ now) / max(float(now @ now), 1e-300)
            if np.abs(after - factor * now).max() > 1e-5 * np.abs(table[j + 1]).max():
                return True
        return False


def euler(sigmas: Any, flow: bool) -> Response:
    """The response of Euler steps in closed form: each adds `(sigma_next - sigma) * output`.

    Args:
        sigmas: noise levels before each step and after the last one.
        flow: whether the latents are handed to the transformer as they are, as flow matching does;
            else divided by `sqrt(1 + sigma^2)`.
    """
    levels = np.asarray(sigmas, dtype=np.float64)
    count = len(levels) - 1
    table = np.tril(np.broadcast_to(np.append(np.diff(levels), 0.0), (count + 1, count + 1)), -1)
    table[:, -1] = 1.0
    scale = np.ones(count) if flow else 1.0 / np.hypot(1.0, levels[:-1])
    return Response(table, scale)


@lru_cache(_KEPT)
def in_closed_form(response: Response, sigmas: tuple[float, ...]) -> Response:
    """A response that is Euler's but for rounding, without that: the same as of given sigmas.

    Args:
        response: as it was measured.
        sigmas: noise levels before each call, and after the last one.
    """
    if len(sigmas) != response.calls + 1:
        return response
    exact = euler(sigmas, max(sigmas) <= 1.0)
    near = np.allclose(response.latents, exact.latents, rtol=0.0, atol=1e-5 * max(sigmas))
    same = near and np.allclose(response.input_scale, exact.input_scale, rtol=1e-4)
    return exact if same else response


@lru_cache(_KEPT)
def predicts_noise(response: Response, sigmas: tuple[float, ...]) -> bool:
    """Whether outputs are noise, by what becomes of the latents while no noise is taken out.

    Args:
        response: of the loop.
        sigmas: noise levels before each call, and after the last one.
    """
    if len(sigmas) != response.calls + 1 or (max(sigmas) <= 1.0 and response.is_plain):
        return False
    # such latents are data + sigma * noise, or the same by sqrt(1 + sigma^2); schedulers that step
    # by a stride of their own deviate a little
    shares = np.array([abs(response.share(j)) for j in range(response.calls)])
    levels = np.log(np.hypot(1.0, np.asarray(sigmas[:-1])))
    rest = np.log(np.maximum(shares, 1e-12)) + levels
    return bool(np.ptp(rest) <= 0.2 * np.ptp(levels))


@lru_cache(_KEPT)
def preconditioned(response: Response, sigmas: tuple[float, ...]) -> Response:
    """The response to raw outputs where a pipeline mixes latents into them (EDM, as Cosmos 2 does).

    With `t = sigma / (1 + sigma)` such a pipeline gives the transformer `(1 - t) x`, and the
    scheduler `(x - ((1 - t) x - t F)) / sigma = (x + F) / (1 + sigma)` for its output F.

    Args:
        response: to what the scheduler is given.
        sigmas: noise levels before each call, or more.
    """
    count, levels = response.calls, np.asarray(sigmas[: response.calls])
    table, given = np.zeros_like(response.latents), np.zeros((count, count + 1))
    for j in range(count + 1):
        table[j] = response.latents[j, :j] @ given[:j]
        table[j, -1] += response.latents[j, -1]
        if j < count:
            given[j] = table[j]
            given[j, j] += 1.0
            given[j] /= 1.0 + levels[j]
    return Response(table, response.input_scale / (1.0 + levels))
