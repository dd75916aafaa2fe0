"""The masks that models hand to attention, reduced to key padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Additive masks mean "out" by numbers from here down.
_MINUS_INFINITY = -1e4
# Elements of a mask of all pairs of tokens that are compared at a time.
_AT_ONCE = 1 << 26


class NotKeyPadding(ValueError):
    """A mask that says more than which keys are padding."""


class KeyMask:
    """A mask as `(B, L)`, True for keys that take part.

    Attributes:
        keys: None where no key is masked out.

    Args:
        mask: bool or additive, broadcast to `(B, H, L, L)`. Looking at it waits for the device.
            Anything else (a `BlockMask`) is a sparse attention of the model's own.

    Raises:
        NotKeyPadding: rows of real tokens differ, or a bias is added.
    """

    def __init__(self, mask: Any) -> None:
        if not isinstance(mask, Tensor):
            raise NotKeyPadding(f"it has a {type(mask).__name__}, a sparse attention of its own")
        self._source = mask
        if mask.ndim == 2:
            mask = mask[:, None, None, :]
        elif mask.ndim == 3:
            mask = mask[:, None]
        if mask.dtype != torch.bool:
            kept, out = mask == 0, mask <= _MINUS_INFINITY
            if not bool((kept | out).all()):
                if bool((kept | (mask == 1)).all()):
                    raise NotKeyPadding(
                        "its mask adds ones and zeros to the scores (if it is meant to leave keys "
                        "out, give the pipeline booleans)"
                    )
                raise NotKeyPadding("its mask adds a bias to the scores")
            mask = kept
        if mask.shape[1] != 1:
            if not bool((mask == mask[:, :1]).all()):
                raise NotKeyPadding("its mask differs between heads")
            mask = mask[:, :1]
        keys = mask.any(dim=-2)[:, 0]
        if mask.shape[-2] != 1:
            # rows of padding tokens may see less: nobody reads them
            rows = keys if mask.shape[-2] == keys.shape[-1] else torch.ones_like(mask[:, 0, :, 0])
            if not self._rows_agree(mask[:, 0], keys, rows):
                raise NotKeyPadding("its mask differs between queries")
        self.keys: Tensor | None = None if bool(keys.all()) else keys

    @staticmethod
    def _rows_agree(mask: Tensor, keys: Tensor, rows: Tensor) -> bool:
        """Whether those rows of `(B, Lq, L)` are all `keys`; beside the mask little is held."""
        step = max(1, _AT_ONCE // keys.numel())
        agree = torch.ones((), dtype=torch.bool, device=mask.device)
        for part, real in zip(mask.split(step, 1), rows.split(step, 1), strict=True):
            agree &= ((part == keys[:, None]) | ~real[..., None]).all()
        return bool(agree)

    def covers(self, mask: Tensor) -> bool:
        """Whether this is the mask it was made from, or a copy: some blocks make their own.

        Many only look at one mask in another shape, which is seen without waiting for the device.
        """
        source = self._source
        if mask.shape != source.shape or mask.dtype != source.dtype or mask.device != source.device:
            return False
        same = mask.data_ptr() == source.data_ptr() and mask.stride() == source.stride()
        return same or torch.equal(mask, source)
