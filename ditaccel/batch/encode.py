"""Frames and latents into files: mp4 (H.264, AV1), png, safetensors."""

from __future__ import annotations

import base64
import io
import os
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..errors import UnsupportedError, UsageError

Frames = NDArray[np.uint8]  # (F, H, W, 3)

KINDS = ("mp4", "png", "frames", "latents")
# One thread each: with more of them the bytes would depend on the machine's cores. x264's fastest
# code for a processor rounds in its own way (with AVX-512 not even twice alike): cpu-independent
# takes the code that gives the same bytes with every instruction set, at the same speed.
CODECS: dict[str, tuple[str, dict[str, str]]] = {
    "h264": (
        "libx264",
        {"preset": "medium", "threads": "1", "x264-params": "cpu-independent=1"},
    ),
    "av1": ("libsvtav1", {"preset": "8", "svtav1-params": "lp=1"}),
}
THUMBNAIL = 96
MAX_CRF = {"h264": 51, "av1": 63}


def check_codec(codec: str, crf: int) -> None:
    """Raise before a job starts, not at its first video.

    Raises:
        UsageError: PyAV is missing, or its build lacks the encoder.
    """
    try:
        import av
    except ImportError:
        raise UsageError(
            "mp4 files need PyAV: pip install 'ditaccel[video]', or save frames or png"
        ) from None
    if CODECS[codec][0] not in av.codecs_available:
        raise UsageError(
            f"{codec}: this PyAV has no {CODECS[codec][0]}; choose another one", "codec"
        )
    if not 0 <= crf <= MAX_CRF[codec]:
        raise UsageError(f"is {crf}; for {codec} it must be 0 to {MAX_CRF[codec]}", "crf")


def _even(frames: Frames) -> Frames:
    """Frames with even sides: 4:2:0 holds no others, so the last row and column are doubled."""
    height, width = frames.shape[1:3]
    if height % 2 == 0 and width % 2 == 0:
        return frames
    return np.pad(frames, ((0, 0), (0, height % 2), (0, width % 2), (0, 0)), mode="edge")


def write_mp4(path: Path, frames: Frames, fps: float, codec: str, crf: int) -> dict[str, Any]:
    """Encode a clip: yuv420p, BT.709, limited range, tagged as such.

    Args:
        path: the file to write.
        frames: uint8 (F, H, W, 3); odd sides are padded to even ones.
        fps: frames a second.
        codec: of `CODECS`.
        crf: constant rate factor.

    Returns:
        What was stated to the encoder.

    Raises:
        UnsupportedError: the encoder does not take these frames.
    """
    import av
    from av.video.reformatter import ColorRange, Colorspace, Interpolation

    name, options = CODECS[codec]
    os.environ.setdefault("SVT_LOG", "1")  # errors: its default is a page on every video
    even = _even(frames)
    height, width = even.shape[1:3]
    # Averaged chroma over whole pixels, rounded: swscale's defaults trade both for speed.
    exact = (
        Interpolation.AREA
        | Interpolation.FULL_CHR_H_INP
        | Interpolation.ACCURATE_RND
        | Interpolation.BITEXACT
    )
    rate = Fraction(fps).limit_denominator(1001)
    try:
        with av.open(str(path), "w", format="mp4", options={"movflags": "+faststart"}) as container:
            stream: Any = container.add_stream(name, rate=rate)
            stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
            stream.options = {**options, "crf": str(crf)}
            context = stream.codec_context
            context.colorspace, context.color_range = Colorspace.ITU709, ColorRange.MPEG
            context.color_primaries = context.color_trc = 1  # BT.709
            for picture in even:
                frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
                frame = frame.reformat(
                    format="yuv420p",
                    dst_colorspace=Colorspace.ITU709,
                    dst_color_range=ColorRange.MPEG,
                    interpolation=exact,
                )
                container.mux(stream.encode(frame))
            container.mux(stream.encode())
    except (av.FFmpegError, ValueError) as error:
        if isinstance(error, OSError) and error.errno in (28, 30, 122):
            raise
        raise UnsupportedError(f"{name} cannot encode {width} x {height}: {error}") from error
    _sync(path)
    stated = {"codec": codec, "encoder": name, "crf": crf, "pix_fmt": "yuv420p", "fps": float(rate)}
    if even.shape != frames.shape:
        stated["padded_from"] = [int(frames.shape[2]), int(frames.shape[1])]
    return stated


def _sync(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def write_png(path: Path, frames: Frames) -> None:
    """One picture as a file, several as a folder of files."""
    from PIL import Image

    if len(frames) == 1:
        Image.fromarray(frames[0]).save(path, "PNG")
        _sync(path)
        return
    path.mkdir()
    for number, picture in enumerate(frames):
        file = path / f"{number:05d}.png"
        Image.fromarray(picture).save(file, "PNG")
        _sync(file)


def write_tensor(path: Path, name: str, tensor: torch.Tensor, about: str) -> None:
    """One tensor as safetensors, with a line on what it is."""
    from safetensors.torch import save

    # Not `save_file`: its errors hide that the disk is full.
    path.write_bytes(save({name: tensor.contiguous().cpu()}, metadata={"about": about}))
    _sync(path)


def thumbnail(frames: Frames) -> str:
    """First, middle and last frame side by side (of a picture: itself), small, as a data URI.

    Args:
        frames: uint8 (F, H, W, 3).
    """
    from PIL import Image

    tiles: list[Frames] = []
    for index in sorted({0, (len(frames) - 1) // 2, len(frames) - 1}):
        tile = Image.fromarray(frames[index])
        tile.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
        if tiles:
            tiles.append(np.full((tile.height, 1, 3), 127, np.uint8))
        tiles.append(np.asarray(tile))
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(tiles, axis=1)).save(buffer, "WEBP", quality=80)
    return f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def write_files(
    folder: Path,
    stem: str,
    kinds: tuple[str, ...],
    frames: Frames | None,
    latents: torch.Tensor | None,
    fps: float,
    codec: str,
    crf: int,
) -> list[tuple[Path, str, dict[str, Any]]]:
    """Write all files of an item into a folder of drafts.

    Args:
        folder: of the drafts.
        stem: path of the outputs, without suffix.
        kinds: of `KINDS`.
        frames: uint8 (F, H, W, 3), None where only latents are wanted.
        latents: as the decoder got them.
        fps: frames a second of mp4 files.
        codec: of mp4 files.
        crf: of mp4 files.

    Returns:
        Draft, path relative to the outputs, and facts, for each file.

    Raises:
        UnsupportedError: the pipeline gave no latents, or the encoder refuses.
    """
    made: list[tuple[Path, str, dict[str, Any]]] = []
    for number, kind in enumerate(kinds):
        draft = folder / f"{number}.{kind}"
        facts: dict[str, Any] = {"kind": kind}
        if kind == "latents":
            if latents is None:
                raise UnsupportedError("this pipeline has no VAE whose latents could be kept")
            write_tensor(draft, "latents", latents, "as vae.decode got them")
            name = f"{stem}.latents.safetensors"
        elif frames is None:
            raise UnsupportedError(f"no frames to write as {kind}")
        elif kind == "frames":
            write_tensor(draft, "frames", torch.from_numpy(frames), "uint8, (F, H, W, 3)")
            name = f"{stem}.frames.safetensors"
        elif kind == "png":
            write_png(draft, frames)
            name = stem if len(frames) > 1 else f"{stem}.png"
        else:
            facts |= write_mp4(draft, frames, fps, codec, crf)
            name = f"{stem}.mp4"
        made.append((draft, name, facts))
    return made
