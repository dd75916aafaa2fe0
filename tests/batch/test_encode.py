"""Files: what a player gets is what the pipeline drew, at a stated loss."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from ditaccel.batch import encode
from ditaccel.batch.encode import check_codec, write_files, write_mp4
from ditaccel.batch.folder import sha256
from ditaccel.errors import UnsupportedError, UsageError

av = pytest.importorskip("av")


def clip(frames: int = 9, height: int = 64, width: int = 96) -> np.ndarray:
    """A smooth moving picture, (F, H, W, 3) uint8."""
    y, x = np.mgrid[0:height, 0:width] / 16.0
    waves = [
        np.stack([np.sin(x + t) + np.cos(y), np.sin(x + t + 1) + np.cos(y + 2), -np.sin(x + t)], -1)
        for t in 0.3 * np.arange(frames)
    ]
    return (127.5 + 50 * np.stack(waves)).round().astype(np.uint8)


def read(path: Path) -> np.ndarray:
    from av.video.reformatter import Interpolation

    # swscale's default on the way back truncates: one level darker, and not our encoder's doing
    exact = Interpolation.BICUBIC | Interpolation.ACCURATE_RND | Interpolation.FULL_CHR_H_INT
    with av.open(str(path)) as container:
        frames = container.decode(video=0)
        return np.stack([f.to_ndarray(format="rgb24", interpolation=exact) for f in frames])


@pytest.mark.parametrize(("codec", "low"), [("h264", 40.0), ("av1", 38.0)])
def test_a_clip_comes_back(tmp_path: Path, codec: str, low: float) -> None:
    frames = clip()
    stated = write_mp4(tmp_path / "a.mp4", frames, 24.0, codec, 12)
    back = read(tmp_path / "a.mp4").astype(float)
    assert back.shape == frames.shape
    assert 10 * np.log10(255**2 / np.square(back - frames).mean()) > low
    # truncation, or a matrix that is not the tagged one, would show as a shift of the mean
    assert abs(float((back - frames).mean())) < 0.4
    with av.open(str(tmp_path / "a.mp4")) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == 24 and stream.frames == len(frames)
        context = stream.codec_context
        assert (context.pix_fmt, int(context.colorspace), int(context.color_range)) == (
            "yuv420p",
            1,
            1,
        )
        assert (context.color_primaries, context.color_trc) == (1, 1)
    assert stated["crf"] == 12 and stated["pix_fmt"] == "yuv420p" and "padded_from" not in stated


def noisy(frames: int = 21, side: int = 64) -> np.ndarray:
    """A disc that moves over noise: what made x264's rate control differ from run to run."""
    noise = np.random.default_rng(0).integers(-6, 6, (frames, side, side, 3))
    y, x = np.mgrid[0:side, 0:side]
    made = np.full((frames, side, side, 3), (200, 220, 240))
    for t, picture in enumerate(made):
        picture[(x - 10 - 2 * t) ** 2 + (y - 30 - 5 * np.sin(t)) ** 2 < 150] = (200, 30, 40)
    return np.clip(made + noise, 0, 255).astype(np.uint8)


def digests(folder: Path, codec: str, times: int) -> set[str]:
    """Hashes of so many encodings of one clip, with other memory in use each time."""
    found, held = set(), []
    for index in range(times):
        held.append(bytes(1000 + 37 * index))
        write_mp4(folder / "a.mp4", noisy(), 16.0, codec, 18)
        found.add(sha256(folder / "a.mp4"))
    return found


@pytest.mark.parametrize(("codec", "times"), [("h264", 60), ("av1", 10)])
def test_many_encodings_of_a_clip_are_one_file(tmp_path: Path, codec: str, times: int) -> None:
    assert len(digests(tmp_path, codec, times)) == 1


@pytest.mark.slow
@pytest.mark.parametrize(("codec", "times"), [("h264", 1500), ("av1", 200)])
def test_very_many_encodings_of_a_clip_are_one_file(tmp_path: Path, codec: str, times: int) -> None:
    assert len(digests(tmp_path, codec, times)) == 1


@pytest.mark.parametrize(
    ("codec", "option", "sets"),
    [
        ("h264", "x264-params", ("asm=SSE2", "asm=AVX2", "asm=0")),
        ("av1", "svtav1-params", ("asm=sse4_1", "asm=avx2", "asm=c")),
    ],
)
def test_every_instruction_set_gives_the_same_bytes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, codec: str, option: str, sets: tuple[str, ...]
) -> None:
    found = digests(tmp_path, codec, 1)
    encoder, options = encode.CODECS[codec]
    for name in sets:
        own = {**options, option: f"{options[option]}:{name}"}
        monkeypatch.setitem(encode.CODECS, codec, (encoder, own))
        found |= digests(tmp_path, codec, 1)
    assert len(found) == 1


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_other_processes_and_cores_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    """As in a worker of its own, with other threads allowed, and on one core."""
    found = digests(tmp_path, codec, 1)
    np.save(tmp_path / "clip.npy", noisy())
    code = (
        "import os, sys, numpy; from pathlib import Path; "
        "pin = getattr(os, 'sched_setaffinity', None); "
        "pin and pin(0, {min(os.sched_getaffinity(0))}); "
        "from ditaccel.batch.encode import write_mp4; "
        "write_mp4(Path(sys.argv[1]), numpy.load(sys.argv[2]), 16.0, sys.argv[3], 18)"
    )
    arguments = [str(tmp_path / "b.mp4"), str(tmp_path / "clip.npy"), codec]
    environment = {**os.environ, "OMP_NUM_THREADS": "2"}
    subprocess.run([sys.executable, "-P", "-c", code, *arguments], check=True, env=environment)
    assert found == {sha256(tmp_path / "b.mp4")}


def test_odd_sides_are_padded_and_said(tmp_path: Path) -> None:
    frames = clip(3, 65, 97)
    stated = write_mp4(tmp_path / "a.mp4", frames, 16.0, "h264", 10)
    back = read(tmp_path / "a.mp4")
    assert back.shape == (3, 66, 98, 3) and stated["padded_from"] == [97, 65]
    assert np.abs(back[:, :65, :97].astype(int) - frames).mean() < 3


def test_flat_colours_keep_their_level(tmp_path: Path) -> None:
    for colour in ((200, 30, 60), (0, 0, 0), (255, 255, 255), (12, 200, 90)):
        flat = np.full((2, 64, 64, 3), colour, np.uint8)
        write_mp4(tmp_path / "a.mp4", flat, 16.0, "h264", 1)
        assert np.abs(read(tmp_path / "a.mp4").astype(int) - flat).max() <= 3


def test_an_encoder_that_refuses_says_so(tmp_path: Path) -> None:
    with pytest.raises(UnsupportedError, match="libsvtav1 cannot encode 2 x 2"):
        write_mp4(tmp_path / "a.mp4", np.zeros((2, 2, 2, 3), np.uint8), 16.0, "av1", 30)


def test_codec_and_crf_are_checked_before_the_job() -> None:
    check_codec("h264", 51)
    with pytest.raises(UsageError, match="0 to 51"):
        check_codec("h264", 52)


def test_kinds_of_files(tmp_path: Path) -> None:
    frames = clip(3, 16, 16)
    kinds = ("mp4", "png", "frames", "latents")
    parts = write_files(tmp_path, "sub/x", kinds, frames, torch.ones(2), 8.0, "h264", 18)
    assert [name for _, name, _ in parts] == [
        "sub/x.mp4",
        "sub/x",
        "sub/x.frames.safetensors",
        "sub/x.latents.safetensors",
    ]
    assert len(list(parts[1][0].iterdir())) == 3
    (only,) = write_files(tmp_path, "x", ("png",), frames[:1], None, 8.0, "h264", 18)[0:1]
    assert only[1] == "x.png"
    with pytest.raises(UnsupportedError, match="no VAE"):
        write_files(tmp_path, "x", ("latents",), frames, None, 8.0, "h264", 18)
