"""A scheduler's response is measured: exact where it is linear, refused where it is not."""

import copy
from itertools import pairwise

import diffusers
import numpy as np
import pytest
import torch

from ditaccel.core.denoising import probing as module
from ditaccel.core.denoising.probing import Probe
from ditaccel.core.denoising.response import Probed, euler
from ditaccel.core.denoising.schedule import Schedule
from ditaccel.core.denoising.schedulers import GivenSigmas

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
FLOW = {"use_flow_sigmas": True, "prediction_type": "flow_prediction", "flow_shift": 5.0}
COG = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "snr_shift_scale": 1.0}
LINEAR = {
    "unipc-1-flow": ("UniPCMultistepScheduler", {**FLOW, "solver_order": 1}),
    "unipc-2-flow": ("UniPCMultistepScheduler", FLOW),
    "unipc-3-flow": ("UniPCMultistepScheduler", {**FLOW, "solver_order": 3}),
    "unipc-2": ("UniPCMultistepScheduler", NOISE),
    "unipc-3": ("UniPCMultistepScheduler", {**NOISE, "solver_order": 3}),
    "dpm-2-flow": ("DPMSolverMultistepScheduler", FLOW),
    "dpm-3-flow": ("DPMSolverMultistepScheduler", {**FLOW, "solver_order": 3}),
    "dpm-2-karras": ("DPMSolverMultistepScheduler", {**NOISE, "use_karras_sigmas": True}),
    "dpm-single": ("DPMSolverSinglestepScheduler", {**NOISE, "lower_order_final": True}),
    "deis": ("DEISMultistepScheduler", NOISE),
    "lms": ("LMSDiscreteScheduler", NOISE),
    "ipndm": ("IPNDMScheduler", {}),
    "pndm": ("PNDMScheduler", NOISE),
    "pndm-plms": ("PNDMScheduler", {**NOISE, "skip_prk_steps": True}),
    "ddim": ("DDIMScheduler", {**NOISE, "clip_sample": False}),
    "ddim-linspace-v": (
        "DDIMScheduler",
        {"clip_sample": False, "timestep_spacing": "linspace", "prediction_type": "v_prediction"},
    ),
    "cogvideox-ddim": ("CogVideoXDDIMScheduler", COG),
    "euler": ("EulerDiscreteScheduler", NOISE),
    "heun": ("HeunDiscreteScheduler", NOISE),
    "kdpm2": ("KDPM2DiscreteScheduler", NOISE),
    "edm-euler": ("EDMEulerScheduler", {}),
    "edm-dpm": ("EDMDPMSolverMultistepScheduler", {}),
    "flow-euler": ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
    "flow-heun": ("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}),
}
OTHERS = {
    "ddim-clip": ("DDIMScheduler", {"clip_sample": True}, Probed.NONLINEAR),
    "ddim-thresholding": (
        "DDIMScheduler",
        {"clip_sample": False, "thresholding": True},
        Probed.NONLINEAR,
    ),
    "dpm-thresholding": (
        "DPMSolverMultistepScheduler",
        {**NOISE, "thresholding": True},
        Probed.NONLINEAR,
    ),
    "ddpm": ("DDPMScheduler", {"clip_sample": False}, Probed.STOCHASTIC),
    "tcd": ("TCDScheduler", NOISE, Probed.STOCHASTIC),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", NOISE, Probed.STOCHASTIC),
    "kdpm2-ancestral": ("KDPM2AncestralDiscreteScheduler", NOISE, Probed.STOCHASTIC),
    "lcm": ("LCMScheduler", NOISE, Probed.STOCHASTIC),
    "flow-lcm": ("FlowMatchLCMScheduler", {}, Probed.STOCHASTIC),
    "sa": ("SASolverScheduler", NOISE, Probed.STOCHASTIC),
    "sde-dpm": (
        "DPMSolverMultistepScheduler",
        {**FLOW, "algorithm_type": "sde-dpmsolver++"},
        Probed.STOCHASTIC,
    ),
    "flow-stochastic": (
        "FlowMatchEulerDiscreteScheduler",
        {"stochastic_sampling": True},
        Probed.STOCHASTIC,
    ),
    "cogvideox-dpm": ("CogVideoXDPMScheduler", COG, Probed.STOCHASTIC),
    "scm": ("SCMScheduler", {}, Probed.STOCHASTIC),
}


def made(name, options, steps=8):
    """A scheduler, ready to run."""
    scheduler = getattr(diffusers, name)(**options)
    scheduler.set_timesteps(2 if name == "SCMScheduler" else steps)
    return scheduler


def ran(scheduler, outputs, latents, times):
    """The latents of a loop with the given outputs, as pipelines step it."""
    rows = [latents]
    for output, t in zip(outputs, times, strict=True):
        scheduler.scale_model_input(latents, t) if hasattr(scheduler, "scale_model_input") else None
        latents = scheduler.step(output.clone(), t, latents, return_dict=False)[0]
        rows.append(latents)
    return torch.stack(rows)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("which", LINEAR)
def test_every_run_of_a_linear_scheduler_is_predicted(which, dtype):
    scheduler = made(*LINEAR[which])
    probe = Probe.of(scheduler, 0)
    assert probe.probed is Probed.LINEAR
    found = probe.response
    draw = torch.Generator().manual_seed(5)
    values = torch.randn(found.calls + 1, 2, 3, 2, 2, generator=draw, dtype=dtype)
    latents = ran(scheduler, values[:-1], values[-1], scheduler.timesteps).double()
    expected = torch.tensordot(torch.tensor(found.latents), values.double(), 1)
    assert (latents - expected).norm() <= 1e-6 * latents.norm()
    assert not np.triu(found.latents[:, :-1]).any(), "an output cannot reach latents before it"
    assert found.initial(0) == 1.0


@pytest.mark.parametrize("which", OTHERS)
def test_what_is_not_linear_is_known_by_measurement(which):
    name, options, why = OTHERS[which]
    probe = Probe.of(made(name, options), 0)
    assert (probe.probed, probe.response) == (why, None)


def test_what_cannot_be_stepped_is_not_linear():
    class Odd(diffusers.DDIMScheduler):
        def step(self, model_output, timestep, sample, needed):
            raise AssertionError

    odd = Odd(clip_sample=False)
    odd.set_timesteps(4)
    assert Probe.of(odd, 0).probed is Probed.FAILED


def unipc(sigmas, order, last):
    """algorithms of UniPC (bh2, flow) as recursion on coefficients of `v_0 .. v_{N-1}, x_0`."""
    count = len(sigmas) - 1
    unit = np.eye(count + 1)
    lam = [np.log((1 - s) / s) if 0 < s < 1 else -np.inf if s == 1 else np.inf for s in sigmas]
    rows, base, data = [unit[-1]], unit[-1], []

    def weights(knots, step, q):
        """`rho` of the Vandermonde system at the given knots."""
        u = -step
        phi = np.expm1(u) if np.isfinite(u) else -1.0
        if q == 1:
            return np.array([0.5])
        term, right = phi / u - 1, []
        for a in range(1, q + 1):
            right.append(term * np.prod(range(1, a + 1)) / phi)
            term = term / u - 1 / np.prod(range(1, a + 2))
        matrix = np.array([[r ** (a - 1) for r in knots] for a in range(1, q + 1)])
        return np.linalg.solve(matrix, right)

    def orders(i):
        return min(order, count - i if last else order, i + 1)

    for i in range(count):
        here = rows[i]
        data.append(here - sigmas[i] * unit[i])
        if i:
            g, step, q = sigmas[i] / sigmas[i - 1] - 1, lam[i] - lam[i - 1], orders(i - 1)
            knots = [(lam[i - 1 - k] - lam[i - 1]) / step for k in range(1, q)] + [1.0]
            rho = weights(knots, step, q)
            mixed = data[i - 1] + rho[-1] * (data[i] - data[i - 1])
            for k in range(1, q):
                mixed = mixed + rho[k - 1] / knots[k - 1] * (data[i - 1 - k] - data[i - 1])
            base = (1 + g) * base - g * mixed
        g, step, q = sigmas[i + 1] / sigmas[i] - 1, lam[i + 1] - lam[i], orders(i)
        knots = [(lam[i - k] - lam[i]) / step for k in range(1, q)]
        rho = weights(knots, step, q - 1) if q > 1 else []
        mixed = data[i]
        for k in range(1, q):
            mixed = mixed + rho[k - 1] / knots[k - 1] * (data[i - k] - data[i])
        rows.append((1 + g) * base - g * mixed)
    return np.array(rows)


@pytest.mark.parametrize("order", [1, 2, 3])
def test_unipc_has_its_closed_form(order):
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW, solver_order=order)
    scheduler.set_timesteps(12)
    found = Probe.of(scheduler, 0).response
    expected = unipc(scheduler.sigmas.double().tolist(), order, True)
    np.testing.assert_allclose(found.latents, expected, atol=2e-6)
    assert found.keeps_outputs, "the corrector of order 1 does, too"


def test_unipc_feels_a_forecast_as_the_known_figures_say():
    """Order 2, 50 steps, shift 5: the next input almost twice, the last step but one twice."""
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW)
    scheduler.set_timesteps(sigmas=np.linspace(1, 1 / 50, 50))
    found, sigmas = Probe.of(scheduler, 0).response, scheduler.sigmas.tolist()
    width = np.diff(sigmas)
    known = {10: (1.87, 0.98), 25: (1.89, 0.97), 48: (1.98, 1.98), 49: (1.0, 1.0)}
    for i, (following, end) in known.items():
        assert found.latents[i + 1, i] / width[i] == pytest.approx(following, abs=0.02)
        assert found.end(i) / width[i] == pytest.approx(end, abs=0.02)


@pytest.mark.parametrize("which", ["unipc-2-flow", "unipc-3-flow", "dpm-2-flow", "flow-euler"])
def test_outputs_of_flow_matching_add_up_to_the_noise_that_went(which):
    scheduler = made(*LINEAR[which])
    found, sigmas = Probe.of(scheduler, 0).response, np.array(scheduler.sigmas.tolist())
    np.testing.assert_allclose(found.latents[:, -1], 1.0, atol=2e-6)
    np.testing.assert_allclose(found.latents[:, :-1].sum(1), sigmas - sigmas[0], atol=2e-6)
    np.testing.assert_allclose(found.input_scale, 1.0)
    assert (found.latents[5] - found.latents[2])[:-1].sum() == pytest.approx(
        sigmas[5] - sigmas[2], abs=2e-6
    )


def test_euler_has_its_closed_form_with_and_without_a_scheduler():
    flow = made("FlowMatchEulerDiscreteScheduler", {"shift": 3.0})
    noise = made("EulerDiscreteScheduler", NOISE)
    for scheduler, is_flow in ((flow, True), (noise, False)):
        levels = scheduler.sigmas.double().tolist()
        measured, given = Probe.of(scheduler, 0).response, Probe.of(GivenSigmas(levels), 0).response
        for known in (euler(levels, is_flow), given):
            np.testing.assert_allclose(measured.latents, known.latents, atol=1e-5)
            np.testing.assert_allclose(measured.input_scale, known.input_scale, rtol=1e-5)
        widths = [after - before for before, after in pairwise(levels)]
        assert [given.latents[i + 1, i] for i in range(8)] == pytest.approx(widths)
        assert not measured.keeps_outputs and not given.keeps_outputs


def test_a_stage_of_heun_is_a_call():
    scheduler = made("FlowMatchHeunDiscreteScheduler", {"shift": 3.0}, 4)
    found, sigmas = Probe.of(scheduler, 0).response, scheduler.sigmas.tolist()
    assert found.calls == len(scheduler.timesteps) == 7
    width = sigmas[1] - sigmas[0]
    assert found.latents[1, 0] == pytest.approx(width, rel=1e-5)
    assert found.latents[2, 0] == pytest.approx(width / 2, rel=1e-5)
    assert found.latents[2, 1] == pytest.approx(width / 2, rel=1e-5)
    assert found.keeps_outputs


@pytest.mark.parametrize("which", ["unipc-2-flow", "flow-euler", "ddim", "euler"])
def test_loops_that_begin_late_have_a_response_of_their_own(which):
    """Image to image: told by `set_begin_index`, or found by the first timestep."""
    name, options = LINEAR[which]
    for told in (True, False):
        scheduler = made(name, options)
        if told and hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(3)
        schedule = Schedule.of(scheduler, float(scheduler.timesteps[3]))
        found = schedule.response
        assert schedule.probed is Probed.LINEAR and found.calls == 5
        values = torch.randn(6, 1, 2, 2, 2, dtype=torch.float64)
        latents = ran(scheduler, values[:-1], values[-1], scheduler.timesteps[3:])
        expected = torch.tensordot(torch.tensor(found.latents), values, 1)
        assert (latents - expected).norm() <= 1e-6 * latents.norm()


def test_own_sigmas_and_dynamic_shifts_are_those_of_the_run():
    scheduler = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    scheduler.set_timesteps(sigmas=[1.0, 0.8, 0.5, 0.1], mu=0.7)
    found = Schedule.of(scheduler, float(scheduler.timesteps[0])).response
    widths = [float(after - before) for before, after in pairwise(scheduler.sigmas.double())]
    assert [found.latents[i + 1, i] for i in range(4)] == pytest.approx(widths, rel=1e-5)


def test_subclasses_and_wrappers_are_served():
    class Doubled(diffusers.FlowMatchEulerDiscreteScheduler):
        """Steps twice as far, which no name would tell."""

        def step(self, model_output, timestep, sample, **kwargs):
            return super().step(2 * model_output, timestep, sample, **kwargs)

    class Wrapper:
        """Passes everything on."""

        def __init__(self, inner):
            self.inner = inner

        def __getattr__(self, name):
            return getattr(self.__dict__["inner"], name)

    doubled = Doubled(shift=3.0)
    doubled.set_timesteps(6)
    sigmas = doubled.sigmas.tolist()
    for scheduler in (doubled, Wrapper(doubled)):
        found = Schedule.of(scheduler, float(doubled.timesteps[0])).response
        assert found.latents[3, 2] == pytest.approx(2 * (sigmas[3] - sigmas[2]), rel=1e-5)
    assert doubled.step_index is None


@pytest.mark.parametrize("which", ["unipc-2-flow", "dpm-single", "flow-heun", "pndm", "lms"])
def test_the_users_scheduler_is_left_alone(which):
    scheduler, seen = made(*LINEAR[which]), []
    inner = scheduler.step
    scheduler.step = lambda *args, **kwargs: seen.append(args) or inner(*args, **kwargs)
    before = copy.deepcopy({k: v for k, v in vars(scheduler).items() if k != "step"})
    assert Probe.of(scheduler, 0).probed is Probed.LINEAR and not seen
    for name, value in before.items():
        now = vars(scheduler)[name]
        same = torch.equal(now, value) if isinstance(value, torch.Tensor) else True
        assert same and (isinstance(value, (torch.Tensor, np.ndarray)) or now == value), name


@pytest.mark.parametrize("which", ["ddpm", "euler-ancestral", "sa", "sde-dpm", "flow-stochastic"])
def test_nobodys_random_numbers_are_drawn(which):
    name, options, _ = OTHERS[which]
    torch.manual_seed(3)
    expected = torch.rand(4)
    torch.manual_seed(3)
    Probe.of(made(name, options), 0).probed  # noqa: B018
    assert torch.equal(torch.rand(4), expected)


def test_a_scheduler_is_probed_when_asked_and_once(monkeypatch):
    probed, measured = [], module._measured
    monkeypatch.setattr(module, "_KNOWN", type(module._KNOWN)())
    monkeypatch.setattr(module, "_measured", lambda *a: probed.append(a) or measured(*a))
    scheduler = diffusers.UniPCMultistepScheduler(**FLOW)

    def begun(steps):
        scheduler.set_timesteps(steps)
        return Schedule.of(scheduler, float(scheduler.timesteps[0]))

    first = begun(6)
    assert not probed
    assert first.response is first.response and len(probed) == 1
    assert begun(6).response is first.response and len(probed) == 1
    assert begun(7).response.calls == 7 and len(probed) == 2
    assert begun(6).response is first.response and len(probed) == 2
    scheduler.register_to_config(solver_order=3)
    assert begun(6).response is not first.response and len(probed) == 3
    for steps in range(8, 8 + module._KEPT):
        begun(steps).probed  # noqa: B018
    assert len(module._KNOWN) == module._KEPT


def test_a_probe_is_of_the_loops_beginning_whenever_it_is_asked():
    scheduler = made(*LINEAR["unipc-2-flow"])
    early = Schedule.of(scheduler, float(scheduler.timesteps[0]))
    late = Schedule.of(scheduler, float(scheduler.timesteps[0]))
    expected = early.response
    values = torch.randn(9, 1, 2, 2, 2)
    ran(scheduler, values[:-1], values[-1], scheduler.timesteps)
    np.testing.assert_array_equal(late.response.latents, expected.latents)


def test_a_loop_that_follows_no_scheduler_has_no_response():
    assert Schedule.of(None, 1.0).response is None and Schedule.of(None, 1.0).probed is None
    scheduler = made(*LINEAR["flow-euler"])
    begun = Schedule.of(scheduler, float(scheduler.timesteps[0]))
    assert begun.response is not None and begun.lost().response is None
