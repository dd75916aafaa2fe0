"""What metrics take for frames: whatever people have, as what it shows, or one clear line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from ditaccel.eval.metrics.flip import flip
from ditaccel.eval.metrics.frames import frame_pair, to_frames
from ditaccel.eval.metrics.psnr import mean_squared_error, psnr
from ditaccel.eval.metrics.ssim import ssim
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from ditaccel.errors import UsageError

METRICS = (psnr, ssim, flip, mean_squared_error)
MODES = ("1", "L", "LA", "P", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr", "HSV", "LAB", "I", "I;16")
MODES += ("F", "PA", "La", "RGBa")


def picture(size: int = 12, seed: int = 0) -> np.ndarray:
    """A smooth uint8 picture (H, W, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    return np.round(np.stack([200 * x, 180 * y, 90 + 50 * x * y + seed], -1)).astype(np.uint8)


def made_as(mode: str, array: np.ndarray) -> Image.Image:
    """A picture in a mode, as people's tools write it."""
    base = Image.fromarray(array)
    gray = np.asarray(base.convert("L"))
    if mode == "I;16":
        return Image.fromarray(gray.astype(np.uint16) * 257)
    if mode == "I":
        return Image.fromarray(gray.astype(np.int32) * 257)
    if mode == "F":
        return Image.fromarray(gray.astype(np.float32) / 255)
    if mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB")
        made = ImageCms.applyTransform(base, ImageCms.buildTransform(*profiles, "RGB", "LAB"))
        assert made is not None
        return made
    if mode == "PA":
        return base.convert("P").convert("PA")
    if mode in ("La", "RGBa"):
        return base.convert("LA" if mode == "La" else "RGBA").convert(mode)
    return base.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_pictures_of_every_mode_are_what_they_show_or_one_line(mode) -> None:
    """A picture held against itself in RGB or gray; what is lost is rounding or a palette."""
    array = picture()
    gray = np.asarray(Image.fromarray(array).convert("L")) / 255
    try:
        found = to_frames(made_as(mode, array)).numpy()
    except UsageError as error:
        assert f"mode {mode} cannot be read" in str(error)
        return
    assert found.shape == (1, 3, 12, 12) and found.min() >= 0 and found.max() <= 1
    shown = (
        gray[None]
        if mode in ("L", "LA", "La", "I", "I;16", "F")
        else array.transpose(2, 0, 1) / 255
    )
    limit = {"P": 0.2, "PA": 0.2, "LAB": 0.1, "HSV": 0.03, "YCbCr": 0.02}.get(mode, 0.005)
    if mode != "1":
        assert np.abs(found[0] - shown).max() < limit


def test_16_bits_are_not_cut_off_at_8() -> None:
    values = np.linspace(0, 65535, 144).round().astype(np.uint16).reshape(12, 12)
    for given_ in (Image.fromarray(values), values, Image.fromarray(values.astype(np.int32))):
        np.testing.assert_allclose(to_frames(given_)[0, 0], values / 65535)


def test_transparency_is_laid_on_white() -> None:
    array = np.zeros((12, 12, 4), np.uint8)
    array[:, 6:, 3] = 255
    for value in (array, Image.fromarray(array), array / 255.0, torch.from_numpy(array)):
        found = to_frames(value)
        assert (found[..., :6] == 1).all() and (found[..., 6:] == 0).all()
    colours = Image.fromarray(picture()).convert("P")
    colours.info["transparency"] = colours.getpixel((0, 0))
    assert (to_frames(colours)[0, :, 0, 0] == 1).all()


def test_every_layout_shows_the_same() -> None:
    clip = np.stack([picture(seed=s) for s in (0, 20)])
    expected = to_frames(clip)
    tensor = torch.from_numpy(clip)
    for value in (
        clip / 255.0,
        tensor,
        tensor.permute(0, 3, 1, 2),
        tensor[None],
        tensor.permute(0, 3, 1, 2)[None] / 255.0,
        clip[None, None],
        list(clip),
        [Image.fromarray(f) for f in clip],
        [[Image.fromarray(f) for f in clip]],
        tuple(tensor.permute(0, 3, 1, 2)),
        tensor.double().div(255).requires_grad_(),
        (clip / 255.0).tolist(),
    ):
        torch.testing.assert_close(to_frames(value), expected)
    gray = clip[..., :1]
    for value in (gray, gray[..., 0], torch.from_numpy(gray).permute(0, 3, 1, 2)):
        torch.testing.assert_close(to_frames(value), to_frames(gray.repeat(3, -1)))
    mixed = to_frames([Image.fromarray(picture()), Image.fromarray(picture()).convert("L")])
    assert mixed.shape == (2, 3, 12, 12) and torch.equal(mixed[1, 0], mixed[1, 2])
    assert to_frames(picture() > 99).unique().tolist() == [0, 1]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_floats_of_every_width(dtype) -> None:
    frames = (torch.from_numpy(picture()) / 255).to(dtype)
    found = to_frames(frames)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found[0], frames.double().permute(2, 0, 1))
    assert psnr(frames, picture()) > 45


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ([], "an empty list"),
        ([picture(), picture(14)], r"different sizes in one sample, \(12, 12, 3\) and \(14"),
        ([Image.new("RGB", (8, 8)), Image.new("RGB", (8, 9))], "different sizes"),
        (np.zeros((2, 3, 12, 12, 3)), "2 samples of shape"),
        (np.zeros((12, 12, 2)), "no RGB|expected RGB|lie in|RGB frames"),
        (np.zeros((3, 12, 12, 2)), "RGB frames of shape"),
        (np.zeros(12), "RGB frames of shape"),
        (np.zeros((0, 12, 12, 3)), "no RGB frames"),
        (np.zeros((12, 12, 3), np.int64), "uint8 or float"),
        (np.zeros((12, 12, 3), np.complex64), "uint8 or float"),
        (np.full((12, 12, 3), 2.0), r"lie in \[0, 1\]"),
        (torch.full((12, 12, 3), -0.5), r"lie in \[0, 1\]"),
        (torch.full((12, 12, 3), torch.nan, dtype=torch.bfloat16), "NaN"),
        (Image.fromarray(np.full((8, 8), 300.0, np.float32)), r"lie in \[0, 1\]"),
        ("a picture", "uint8 or float"),
        (None, "uint8 or float"),
        ([None], "uint8 or float"),
        ({"a": 1}, "uint8 or float"),
    ],
)
def test_what_shows_nothing_is_one_line(value, words) -> None:
    if isinstance(value, np.ndarray) and value.shape == (12, 12, 2):
        assert to_frames(value).shape == (12, 3, 12, 2)  # 12 gray frames of 12 x 2
        return
    with pytest.raises(UsageError, match=words) as told:
        to_frames(value)
    assert "\n" not in str(told.value)


@given(
    height=st.integers(1, 14),
    width=st.integers(1, 14),
    frames=st.integers(0, 3),
    channels=st.sampled_from([None, 1, 2, 3, 4]),
    dtype=st.sampled_from(["uint8", "uint16", "bool", "float16", "float32", "float64", "bfloat16"]),
    first=st.booleans(),
    batch=st.sampled_from([None, 1, 2]),
)
@settings(max_examples=150, deadline=None)
def test_any_array_is_frames_or_one_line(
    height, width, frames, channels, dtype, first, batch
) -> None:
    shape = [height, width]
    if channels is not None:
        shape = [channels, *shape] if first else [*shape, channels]
    if frames:
        shape = [frames, *shape]
    if batch is not None:
        shape = [batch, *shape]
    values = np.random.default_rng(0).random(shape)
    if dtype == "bfloat16":
        given_ = torch.from_numpy(values).bfloat16()
    elif dtype in ("uint8", "uint16"):
        given_ = np.round(values * 200).astype(dtype)
    else:
        given_ = values.astype(dtype) if dtype != "bool" else values > 0.5
    try:
        found = to_frames(given_)
    except UsageError as error:
        assert "\n" not in str(error)
        return
    assert found.ndim == 4 and found.shape[1] == 3 and found.dtype == torch.float64
    assert bool(((found >= 0) & (found <= 1)).all())


@given(st.integers(1, 13), st.integers(1, 13))
@settings(max_examples=40, deadline=None)
def test_frames_of_any_size_have_a_number_or_one_line(height, width) -> None:
    a = np.random.default_rng(0).random((2, height, width, 3))
    b = np.clip(a + 0.1, 0, 1)
    for metric in METRICS:
        try:
            value = metric(a, b)
        except UsageError as error:
            assert "\n" not in str(error) and "6 x 6 pixels" in str(error)
            assert min(height, width) < 6 and metric is ssim
        else:
            assert np.isfinite(value)


def test_a_pair_in_two_forms() -> None:
    clip = np.stack([picture(seed=s) for s in (0, 20)])
    a, b = frame_pair([Image.fromarray(f) for f in clip], torch.from_numpy(clip)[None])
    assert torch.equal(a, b)
    with pytest.raises(UsageError, match="differ in size"):
        frame_pair(clip, clip[:1])
