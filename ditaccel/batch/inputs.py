"""Images and videos that items start from."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import UsageError
from ..models import line_of

MAX_BYTES = 256 << 20
_TIMEOUT = 60.0


def _bytes(source: str) -> bytes:
    if "://" not in source:
        return Path(source).read_bytes()
    from urllib.request import Request, urlopen

    request = Request(source, headers={"User-Agent": "ditaccel"})
    with urlopen(request, timeout=_TIMEOUT) as answer:
        data: bytes = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UsageError(f"{source} is larger than {MAX_BYTES >> 20} MB")
    return data


def _image(data: bytes) -> Any:
    from PIL import Image, ImageOps

    return ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")


def _video(data: bytes) -> list[Any]:
    import av

    with av.open(io.BytesIO(data), "r") as container:
        frames = [frame.to_image() for frame in container.decode(video=0)]
    if not frames:
        raise UsageError("it holds no frame")
    return frames


_READERS: dict[str, Callable[[bytes], Any]] = {"image": _image, "video": _video}


def load_inputs(inputs: dict[str, str]) -> dict[str, Any]:
    """The arguments that a row's input files become.

    Args:
        inputs: `image` and `video`: paths, or URLs where the plan allowed them.

    Raises:
        UsageError: one cannot be read, in one line.
    """
    made = {}
    for name, source in inputs.items():
        try:
            made[name] = _READERS[name](_bytes(source))
        except Exception as error:
            # PIL, PyAV and urllib raise unrelated types for what is no picture.
            raise UsageError(f"{name} {source} cannot be read ({line_of(error)})") from error
    return made
