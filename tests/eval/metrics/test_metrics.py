"""Metrics against closed forms, and what they must refuse."""

import math

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics import psnr as psnr_module
from ditaccel.eval.metrics.fid import fid, fid_error
from ditaccel.eval.metrics.flip import flip
from ditaccel.eval.metrics.frames import to_frames
from ditaccel.eval.metrics.kid import kid, kid_error
from ditaccel.eval.metrics.psnr import CAP, from_mse, mean_squared_error, pooled, psnr
from ditaccel.eval.metrics.ssim import ssim
from hypothesis import given, settings
from hypothesis import strategies as st

from ditaccel.errors import UsageError

PAIRED = (psnr, ssim, flip, mean_squared_error)


def clip(frames: int = 3, size: int = 24, seed: int = 0) -> np.ndarray:
    """Smooth uint8 frames (F, H, W, 3) away from 0 and 255."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:size, 0:size] / size
    planes = [80 + 90 * x, 60 + 80 * y, 90 + 50 * x * y]
    shifts = rng.uniform(-10, 10, (frames, 1, 1, 3))
    return np.round(np.stack(planes, -1)[None] + shifts).astype(np.uint8)


@given(shift=st.integers(1, 60))
@settings(max_examples=15, deadline=None)
def test_constant_shift_gives_the_closed_form(shift: int) -> None:
    a = clip()
    assert psnr(a, a + np.uint8(shift)) == pytest.approx(20 * math.log10(255 / shift), abs=1e-9)
    assert psnr(a / 255.0, (a + shift) / 255.0) == pytest.approx(20 * math.log10(255 / shift))


def test_identical_is_capped_not_infinite() -> None:
    a = clip()
    assert psnr(a, a) == CAP == 99.0
    assert ssim(a, a) == pytest.approx(1.0)
    assert flip(a, a) == 0.0
    assert math.isfinite(psnr(a, a))


def test_uint8_does_not_wrap() -> None:
    black, white = np.zeros((1, 16, 16, 3), np.uint8), np.full((1, 16, 16, 3), 255, np.uint8)
    assert psnr(black, white) == pytest.approx(0.0)
    assert mean_squared_error(black, white) == 1.0
    noise = [
        np.random.default_rng(s).integers(0, 256, (1, 64, 64, 3)).astype(np.uint8) for s in (1, 2)
    ]
    # Independent uniform values differ by 1/6 in the mean square: 7.8 dB, not a wrapped 27.9 dB.
    assert psnr(*noise) == pytest.approx(10 * math.log10(6), abs=0.1)


def test_mean_over_frames_and_pooling_differ() -> None:
    a = clip(frames=2)
    b = a.copy()
    b[1] += 10
    assert psnr(a, b) == pytest.approx((CAP + 20 * math.log10(25.5)) / 2)
    mse = (10 / 255) ** 2
    assert pooled([0.0, mse]) == pytest.approx(from_mse(mse / 2))
    assert mean_squared_error(a, b) == pytest.approx(mse / 2)


@pytest.mark.parametrize("metric", PAIRED)
def test_paired_metrics_refuse_what_has_no_answer(metric) -> None:
    a = clip()
    broken = (a / 255.0).copy()
    broken[0, 0, 0, 0] = np.nan
    cases = [
        (a, a[:2], "differ in size"),
        (a, a[:, :-1], "differ in size"),
        (a / 255.0, broken, "NaN"),
        (a, a.astype(np.int64), "uint8 or float"),
        (a, a.astype(np.float64), r"lie in \[0, 1\]"),
        (a, a[..., :2], "RGB"),
        (a[:0], a[:0], "RGB"),
    ]
    for reference, candidate, words in cases:
        with pytest.raises(UsageError, match=words):
            metric(reference, candidate)


@pytest.mark.parametrize("metric", PAIRED)
def test_paired_metrics_are_symmetric_enough(metric) -> None:
    a, b = clip(seed=1), clip(seed=2)
    assert metric(a, b) == pytest.approx(metric(b, a), rel=0.05)


def test_one_picture_is_a_clip_of_one_frame() -> None:
    a = clip(frames=1)
    assert to_frames(a[0]).shape == to_frames(a).shape == (1, 3, 24, 24)
    assert psnr(a[0], a) == CAP
    assert to_frames(torch.from_numpy(a)).dtype == torch.float64


def test_a_quality_gate_on_psnr_catches_every_damage() -> None:
    """A gate is only worth its name if everything broken fails it."""

    def passes(candidate: np.ndarray) -> bool:
        return psnr(a, candidate) >= 30 and ssim(a, candidate) >= 0.9

    a, rng = clip(frames=4, size=32), np.random.default_rng(0)
    # A moving edge, so that flips and shuffles show.
    for i in range(4):
        a[i, 4 + 5 * i : 10 + 5 * i, 4:12] = (230, 30, 30)
    slight = np.clip(a.astype(int) + rng.integers(-2, 3, a.shape), 0, 255).astype(np.uint8)
    assert passes(a) and passes(slight)
    noise = rng.integers(0, 256, a.shape).astype(np.uint8)
    for damaged in (np.zeros_like(a), noise, a[:, :, ::-1], a[:, ::-1], a[::-1], 255 - a):
        assert not passes(np.ascontiguousarray(damaged))
    for unusable in (a[:3], a[:, ::2], a * np.nan):
        with pytest.raises(UsageError):
            passes(unusable)


def test_fid_of_a_set_with_itself_is_zero_and_it_is_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(200, 6, generator=generator), torch.randn(300, 6, generator=generator) + 0.5
    assert fid(a, a) == pytest.approx(0.0, abs=1e-6)
    assert fid(a, b) == pytest.approx(fid(b, a), rel=1e-9)
    assert fid(a, b) > 0.5


def test_fid_of_known_gaussians() -> None:
    # Whitened samples have mean 0 and covariance 1 exactly, so the closed form is exact too.
    x = torch.randn(500, 4, generator=torch.Generator().manual_seed(1)).double()
    x = x - x.mean(0)
    x = x @ torch.linalg.inv(torch.linalg.cholesky(x.T @ x / 499)).T
    shift, scale = torch.tensor([3.0, 0.0, -1.0, 0.0]).double(), 2.0
    expected = float((shift**2).sum()) + 4 * (scale - 1) ** 2
    assert fid(x, x * scale + shift) == pytest.approx(expected, rel=1e-6)


def test_kid_is_near_zero_for_one_distribution_and_repeatable() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b, c = (torch.randn(n, 8, generator=generator) for n in (400, 400, 250))
    state = torch.get_rng_state()
    assert abs(kid(a, b)) < 0.1 < kid(a, b + 1)
    assert kid(a, c) == kid(a, c)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("distance", [fid, kid])
def test_distances_refuse_one_sample_nan_and_mixed_extractors(distance) -> None:
    a = torch.randn(20, 4)
    broken = a.clone()
    broken[3, 1] = torch.nan
    for other, words in (
        (a[:1], "1 sample.*at least 10"),
        (a[:9], "9 sample.*at least 10"),
        (broken, "NaN"),
        (torch.randn(20, 5), "same extractor"),
        (a[0], r"\(N, D\)"),
    ):
        with pytest.raises(UsageError, match=words):
            distance(a, other)


def test_a_set_has_no_distance_to_itself_and_so_few_samples_none_at_all() -> None:
    """KID of a set of three with itself came out at -5.35."""
    a = torch.randn(12, 64, generator=torch.Generator().manual_seed(3))
    assert kid(a, a.clone()) == 0.0
    with pytest.raises(UsageError, match="tells nothing but their number"):
        kid(a[:3], a[:3])


def test_standard_errors_cover_the_spread_of_repeated_draws() -> None:
    generator = torch.Generator().manual_seed(5)
    found: dict[str, list[float]] = {"kid": [], "kid error": [], "fid": [], "fid error": []}
    for _ in range(60):
        a, b = torch.randn(60, 4, generator=generator), torch.randn(80, 4, generator=generator)
        b = 1.3 * b + 0.4
        found["kid"].append(kid(a, b))
        found["kid error"].append(kid_error(a, b))
        found["fid"].append(fid(a, b))
        found["fid error"].append(float(fid_error(a, b) or 0))
    for name in ("kid", "fid"):
        spread = float(np.std(found[name]))
        assert 0.6 * spread < float(np.median(found[f"{name} error"])) < 1.7 * spread, name


def test_no_standard_error_where_none_can_be_had() -> None:
    a = torch.randn(11, 4)
    assert fid_error(a, a + 1) is None  # a tenth left out would leave too few
    wide = torch.randn(600, 600)
    assert fid_error(wide, wide + 1) is None


def test_bad_errors_are_refused() -> None:
    for value in (-1.0, math.nan, math.inf):
        with pytest.raises(UsageError):
            psnr_module.from_mse(value)
    with pytest.raises(UsageError):
        pooled([])
