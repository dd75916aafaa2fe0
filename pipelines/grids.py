"""Where tokens lie in a picture or clip: frames, rows and columns, in which order they follow."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

from torch import Tensor

Grid = tuple[int, int, int]
# Of a transformer's config, the shape of its latents, and the arguments of its call by name.
GridRule = Callable[[Any, tuple[int, ...], Mapping[str, Any]], Grid | None]
# What changes of a call's arguments, by name, where only the first tokens of packed latents stay.
# None where the others cannot be left out.
GivenRule = Callable[[Mapping[str, Any], int], dict[str, Any] | None]
TokenRule = Callable[[Any, tuple[int, ...]], int]


def of_patches(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of latents `(B, C, [F,] H, W)` that are cut into patches."""
    return patch_grid(config, shape)


def patch_grid(config: Any, shape: tuple[int, ...]) -> Grid:
    """Frames, rows and columns of the tokens of latents `(B, C, [F,] H, W)` cut into patches."""
    patch = config.patch_size
    if isinstance(patch, int):
        patch = (getattr(config, "patch_size_t", None) or 1, patch, patch)
    pairs = zip(reversed(shape[2:]), reversed(patch), strict=False)
    columns, rows, frames = (*(size // step for size, step in pairs), 1, 1)[:3]
    return frames, rows, columns


def tokens_on(rule: Callable[[Any, tuple[int, ...], Mapping[str, Any]], Grid]) -> TokenRule:
    """Image or video tokens by a rule that asks for no arguments of the call."""
    return partial(_count, rule)


def _count(rule: Any, config: Any, shape: tuple[int, ...]) -> int:
    return math.prod(rule(config, shape, {}))


def from_ids(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `img_ids` `(L, axes)` or `(B, L, axes)`, of which two axes are row and column.

    Given images stand behind the one that is made, with other numbers on an axis in front of these
    two. There is no grid where the numbers are no plain grid. Waits for the device.
    """
    ids = named.get("img_ids")
    if not isinstance(ids, Tensor) or ids.ndim not in (2, 3):
        return None
    ids = (ids[0] if ids.ndim == 3 else ids).detach().float().cpu()
    moving = (ids != ids[0]).any(0).nonzero()[:, 0].tolist()
    if len(moving) == 3:
        axis = moving.pop(0)
        ids = ids[: int((ids[:, axis] != ids[0, axis]).nonzero()[0, 0])]
    if len(moving) != 2:
        return None
    places = (ids[:, moving] - ids[:, moving].amin(0)).round().long()
    rows, columns = (places.amax(0) + 1).tolist()
    in_order = places[:, 0] * columns + places[:, 1]
    if len(ids) != rows * columns or bool((in_order.diff() != 1).any()):
        return None
    return 1, rows, columns


def first_ids(named: Mapping[str, Any], count: int) -> dict[str, Any]:
    """The first `count` rows of `img_ids` `(L, axes)` or `(B, L, axes)`."""
    return {"img_ids": named["img_ids"][..., :count, :]}


def first_shapes(named: Mapping[str, Any], count: int) -> dict[str, Any] | None:
    """The first picture of each item of the batch in `img_shapes`, which has `count` tokens.

    None where another picture has a longer side: the positions of the text begin behind the longest
    one, so that they would change without it.
    """
    shapes = named["img_shapes"]
    items = shapes if isinstance(shapes[0], list) else [shapes]
    longest = [[max(shape[1:]) for shape in item] for item in items]
    if any(max(each) > each[0] for each in longest):
        return None
    first = [item[:1] for item in items]
    return {"img_shapes": first if items is shapes else list(first[0])}


def from_sizes(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `num_frames`, `height` and `width`, counted in tokens of latents that are packed."""
    sizes = [named.get(key) for key in ("num_frames", "height", "width")]
    if not all(isinstance(n, int) for n in sizes):
        return None
    frames, rows, columns = (int(n) for n in sizes)  # type: ignore[arg-type]
    return frames, rows, columns


def from_image_shapes(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid | None:
    """From `img_shapes`, `(frames, rows, columns)` of each picture of each item of the batch.

    The picture that is made is the first, and given ones stand behind it. There is no grid where
    several are made (layers).
    """
    shapes = named.get("img_shapes")
    if not isinstance(shapes, (list, tuple)) or not shapes:
        return None
    first = shapes[0] if isinstance(shapes[0], list) else shapes[:1]
    same = all(item == shapes[0] for item in shapes)
    layers = getattr(config, "use_layer3d_rope", False) and len(first) > 1
    if not same or layers or not first or len(first[0]) != 3:
        return None
    frames, rows, columns = (int(n) for n in first[0])
    return frames, rows, columns


def channels_last(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of latents `(B, F, H, W, C)` cut into patches."""
    frames, rows, columns = (n // p for n, p in zip(shape[1:4], config.patch_size, strict=True))
    return frames, rows, columns


def frames_first(config: Any, shape: tuple[int, ...], named: Mapping[str, Any]) -> Grid:
    """Of latents `(B, F, C, H, W)` cut into patches."""
    patch, frames = config.patch_size, shape[1] // (getattr(config, "patch_size_t", None) or 1)
    return frames, shape[3] // patch, shape[4] // patch
