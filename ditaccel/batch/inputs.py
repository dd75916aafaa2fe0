"""Images and videos that items start from, bounded before anything is decoded."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from ..errors import UsageError
from ..io.models import line_of

# Of a file that is fetched; files on disk are read in parts.
MAX_BYTES = 256 << 20
# Pixels of an image, or of all frames of a video: 1.6 GB once decoded.
MAX_PIXELS = 1 << 29
# What a frame counts at least: many tiny ones take memory, too.
_LEAST = 1 << 16
_TIMEOUT = 60.0
# Containers that lead to no other file or address, as playlists do.
_CONTAINERS = (
    "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,gif,apng,mpegts,mpeg,mpegvideo,flv,ogg,asf,h264,"
    "hevc,ivf,nut,mxf"
)


@contextmanager
def _opened(source: str) -> Iterator[IO[bytes]]:
    if "://" not in source:
        with Path(source).open("rb") as file:
            yield file
        return
    from urllib.request import Request, urlopen

    request = Request(source, headers={"User-Agent": "ditaccel"})
    with urlopen(request, timeout=_TIMEOUT) as answer:
        data: bytes = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"it is larger than {MAX_BYTES >> 20} MB")
    yield io.BytesIO(data)


def _bound(pixels: int, frames: int, most: int) -> None:
    if max(pixels, _LEAST if frames > 1 else 0) * frames > most:
        many = f"{frames} frames of " if frames > 1 else ""
        raise UsageError(
            f"{many}{pixels / 1e6:.1f} megapixels are more than max_input, {most} pixels; give a "
            "smaller one, or raise it"
        )


def _image(file: IO[bytes], most: int, decode: bool) -> Any:
    from PIL import Image, ImageOps

    Image.init()
    # EPS runs another program.
    formats = [name for name in Image.OPEN if name != "EPS"]
    picture = Image.open(file, formats=formats)  # reads the header; above 179 megapixels it raises
    _bound(picture.width * picture.height, 1, most)
    return ImageOps.exif_transpose(picture).convert("RGB") if decode else None


def _video(file: IO[bytes], most: int, decode: bool) -> list[Any] | None:
    import av

    with av.open(file, "r", options={"format_whitelist": _CONTAINERS}) as container:
        if not container.streams.video:
            raise UsageError("it holds no video")
        stream = container.streams.video[0]
        pixels = stream.width * stream.height
        seconds = float((stream.duration or 0) * (stream.time_base or 0))
        if pixels < 1:
            raise UsageError("it holds no frame")
        # What the file says of itself; what it really holds is counted below.
        _bound(pixels, stream.frames or round(seconds * float(stream.average_rate or 0)) or 1, most)
        if not decode:
            return None
        stream.codec_context.options = {"max_pixels": str(most)}  # a frame may be another size
        frames: list[Any] = []
        total = 0
        for frame in container.decode(stream):
            total += max(frame.width * frame.height, _LEAST)
            if total > most:
                _bound(frame.width * frame.height, len(frames) + 1, most)
            frames.append(frame.to_image())
    if not frames:
        raise UsageError("it holds no frame")
    return frames


_READERS: dict[str, Callable[[IO[bytes], int, bool], Any]] = {"image": _image, "video": _video}


def _read(name: str, source: str, most: int, decode: bool) -> Any:
    try:
        with _opened(source) as file:
            return _READERS[name](file, most, decode)
    except ImportError:
        raise UsageError("reading a video needs PyAV: pip install 'ditaccel[video]'") from None
    except Exception as error:
        # PIL, PyAV and urllib raise unrelated types for what is no picture, some with the address
        # of a Python object in place of the file's name.
        line = f"not a readable {name}" if "<_io." in str(error) else line_of(error)
        raise UsageError(f"{name} {source} cannot be read ({line})") from error


def check_input(name: str, source: str, most: int = MAX_PIXELS) -> None:
    """Look at a file before a job starts: its header, its size.

    Args:
        name: `image` or `video`.
        source: a path; a URL is not asked yet.
        most: pixels of an image, or of all frames of a video.

    Raises:
        UsageError: it is not one, or larger than allowed; in one line.
    """
    if "://" not in source:
        _read(name, source, most, decode=False)


def load_inputs(inputs: dict[str, str], most: int = MAX_PIXELS) -> dict[str, Any]:
    """The arguments that a row's input files become.

    Args:
        inputs: `image` and `video`: paths, or URLs where the plan allowed them.
        most: pixels of an image, or of all frames of a video (at least 65,536 each).

    Raises:
        UsageError: one cannot be read, or is larger than allowed; in one line.
    """
    return {name: _read(name, source, most, decode=True) for name, source in inputs.items()}
