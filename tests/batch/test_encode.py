"""Files: what a player gets is what the pipeline drew, at a stated loss."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from ditaccel.batch.encode import check_codec, write_files, write_mp4
from ditaccel.batch.inputs import load_inputs
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


@pytest.mark.parametrize("codec", ["h264", "av1"])
def test_the_same_frames_give_the_same_bytes(tmp_path: Path, codec: str) -> None:
    for name in "ab":
        write_mp4(tmp_path / name, clip(5), 16.0, codec, 30)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


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


def test_inputs(tmp_path: Path) -> None:
    from PIL import Image

    Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
    write_mp4(tmp_path / "a.mp4", clip(4), 16.0, "h264", 5)
    made = load_inputs({"image": str(tmp_path / "a.png"), "video": str(tmp_path / "a.mp4")})
    assert np.array_equal(np.asarray(made["image"]), clip(1)[0]) and len(made["video"]) == 4
    (tmp_path / "b.png").write_bytes(b"no picture")
    for name in ("image", "video"):
        with pytest.raises(UsageError, match=rf"{name} .*b\.png cannot be read"):
            load_inputs({name: str(tmp_path / "b.png")})


def test_remote_inputs_and_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading
    from functools import partial
    from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer

    from PIL import Image

    from ditaccel.batch import inputs

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        made = load_inputs({"image": url})
        assert np.array_equal(np.asarray(made["image"]), clip(1)[0])
        with pytest.raises(UsageError, match=r"cannot be read .*404"):
            load_inputs({"image": url.replace("a.png", "b.png")})
        monkeypatch.setattr(inputs, "MAX_BYTES", 100)
        with pytest.raises(UsageError, match="larger than"):
            load_inputs({"image": url})
    finally:
        server.shutdown()
        server.server_close()
