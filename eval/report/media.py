"""Pictures, difference heat maps, frame strips and videos as data URIs."""

from __future__ import annotations

import base64
import io
from fractions import Fraction
from functools import cache
from pathlib import Path

import numpy as np
from ditaccel.eval.store import load_frames
from numpy.typing import NDArray
from PIL import Image

from ditaccel.errors import UsageError

Frames = NDArray[np.uint8]  # (F, H, W, 3)

# Mean absolute difference over the colour channels, in 8-bit levels, that the heat map's last
# colour stands for. Fixed, so that heat maps of different runs can be compared.
HEAT_MAX = 64
# Small frames are enlarged before a lossy codec sees them, or it would blur their edges.
VIDEO_SIDE = 256
PICTURE_SIDE = 384
STRIP_FRAMES = 6
STRIP_SIDE = 96


def read_frames(path: Path) -> Frames:
    """Read uint8 frames (F, H, W, 3) from an `.npz` with the key `frames`.

    Raises:
        UsageError: the file is missing, damaged or of another kind.
    """
    frames = load_frames(path)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[-1] != 3:
        raise UsageError(
            f"{path} must hold uint8 frames (F, H, W, 3), not {frames.dtype} {frames.shape}"
        )
    return frames


@cache
def _palette() -> NDArray[np.uint8]:
    """Magma-like ramp, 256 x 3: lightness rises evenly, so it reads without colour vision."""
    stops = ((0, 0, 4), (59, 15, 112), (140, 41, 129), (222, 73, 104), (254, 159, 109))
    table = np.array([*stops, (252, 253, 191)], dtype=float)
    at = np.linspace(0, len(table) - 1, 256)
    columns = [np.interp(at, np.arange(len(table)), table[:, c]) for c in range(3)]
    return np.stack(columns, -1).round().astype(np.uint8)


def heat_map(frames: Frames, dense: Frames) -> Frames:
    """Difference to dense in false colours, (F, H, W, 3); black is equal, light is far."""
    gap = np.abs(frames.astype(np.int16) - dense.astype(np.int16)).mean(-1)
    return _palette()[np.clip(gap * (255 / HEAT_MAX), 0, 255).astype(np.uint8)]


def heat_legend() -> str:
    """The ramp as a data URI, 256 x 1."""
    return encode_picture(_palette()[None])


def _data_uri(kind: str, payload: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(payload).decode('ascii')}"


def encode_picture(picture: NDArray[np.uint8], side: int = PICTURE_SIDE) -> str:
    """One picture (H, W, 3) as a data URI: lossless while small, else shrunk and lossy."""
    image = Image.fromarray(picture)
    small = max(image.size) <= 256
    if max(image.size) > side:
        image.thumbnail((side, side), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    if small:
        image.save(buffer, "PNG", optimize=True)
        return _data_uri("image/png", buffer.getvalue())
    image.save(buffer, "WEBP", quality=88)
    return _data_uri("image/webp", buffer.getvalue())


def frame_strip(frames: Frames) -> NDArray[np.uint8]:
    """Up to six frames, first and last included, side by side with a gap: (H, W', 3)."""
    picks = np.unique(np.linspace(0, len(frames) - 1, STRIP_FRAMES).round().astype(int))
    tiles = []
    for index in picks:
        tile = Image.fromarray(frames[index])
        if max(tile.size) > STRIP_SIDE:
            tile.thumbnail((STRIP_SIDE, STRIP_SIDE), Image.Resampling.LANCZOS)
        tiles.append(np.asarray(tile))
    gap = np.full((tiles[0].shape[0], max(1, tiles[0].shape[1] // 32), 3), 127, np.uint8)
    parts = [part for tile in tiles for part in (tile, gap)][:-1]
    return np.concatenate(parts, axis=1)


def encode_video(frames: Frames, fps: float) -> str:
    """Frames (F, H, W, 3) as a WebM (VP9) data URI, enlarged by a whole factor while small.

    Args:
        frames: uint8, at least two.
        fps: frames per second.

    Raises:
        UsageError: PyAV is missing or has no VP9 encoder.
    """
    try:
        import av
    except ImportError:
        raise UsageError("videos in the report need PyAV: pip install 'ditaccel[eval]'") from None
    height, width = frames.shape[1:3]
    scale = max(1, VIDEO_SIDE // max(height, width))
    shrink = max(1, -(-max(height, width) // PICTURE_SIDE))
    buffer = io.BytesIO()
    with av.open(buffer, "w", format="webm") as container:
        stream = container.add_stream("libvpx-vp9", rate=Fraction(fps).limit_denominator(1000))
        stream.width = (width * scale // shrink) // 2 * 2
        stream.height = (height * scale // shrink) // 2 * 2
        stream.pix_fmt = "yuv420p"
        stream.options = {"crf": "20", "b": "0", "deadline": "realtime", "cpu-used": "7"}
        for picture in frames:
            large = picture.repeat(scale, axis=0).repeat(scale, axis=1)
            image = Image.fromarray(large).resize((stream.width, stream.height))
            container.mux(stream.encode(av.VideoFrame.from_image(image)))
        container.mux(stream.encode())
    return _data_uri("video/webm", buffer.getvalue())
