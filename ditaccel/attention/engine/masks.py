"""The masks that models hand to attention, reduced to key padding."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

# Additive masks exclude a key by a value at or below this.
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
        image: where tokens of the latents are, None where that is not known. Text that none of
            them sees is padding, whatever it sees itself (Ideogram 4 makes it a sequence apart):
            its outputs reach no token of the latents, in any layer with this mask.

    Raises:
        NotKeyPadding: rows of real tokens differ, or a bias is added.
    """

    def __init__(self, mask: Any, image: slice | None = None) -> None:
        if not isinstance(mask, Tensor):
            raise NotKeyPadding(f"it has a {type(mask).__name__}, a sparse attention of its own")
        self._source: Tensor | None = mask
        self._version = _version(mask)
        self._kind = _kind(mask)
        self._expanded = _is_expanded(mask)
        if self._expanded:
            mask = mask[..., :1, :]
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
        if image is not None and mask.shape[-2] == mask.shape[-1]:
            seen = mask[:, 0, image][:, 0]
            keys = torch.where(seen[:, image].all(), seen, keys)
        if mask.shape[-2] != 1:
            # rows of padding tokens may see less: nobody reads them
            rows = keys if mask.shape[-2] == keys.shape[-1] else torch.ones_like(mask[:, 0, :, 0])
            if not self._rows_agree(mask[:, 0], keys, rows):
                raise NotKeyPadding("its mask differs between queries")
        self.keys: Tensor | None = None if bool(keys.all()) else keys
        self._rows, self._sample = self._sampled(self._source, keys)

    @staticmethod
    def _sampled(source: Tensor, keys: Tensor) -> tuple[list[int], Tensor | None]:
        """Rows of the first, the middle and the last real token; None where there is one row."""
        if source.ndim == 2 or source.shape[-2] == 1:
            return [], None
        if _is_expanded(source):
            return [0], source[..., [0], :]
        real = list(range(source.shape[-2]))
        if len(real) == keys.shape[-1]:
            real = keys.any(dim=0).nonzero()[:, 0].tolist() or real
        rows = sorted({real[0], real[len(real) // 2], real[-1]})
        return rows, source[..., rows, :]

    @staticmethod
    def _rows_agree(mask: Tensor, keys: Tensor, rows: Tensor) -> bool:
        """Whether those rows of `(B, Lq, L)` are all `keys`; besides the mask, little is held."""
        step = max(1, _AT_ONCE // keys.numel())
        agree = torch.ones((), dtype=torch.bool, device=mask.device)
        for part, real in zip(mask.split(step, 1), rows.split(step, 1), strict=True):
            agree &= ((part == keys[:, None]) | ~real[..., None]).all()
        return bool(agree)

    def covers(self, mask: Tensor, trusted: bool = False) -> bool:
        """Whether this is the mask it was made from, or a copy: some blocks make their own.

        Many only look at one mask in another shape, which is seen without waiting for the device.

        Args:
            mask: of another call.
            trusted: whether all of an earlier mask of that layer was looked at, and found to be key
                padding. Then some of its rows tell: its pairs of tokens are too many to compare
                them in every layer at every step.
        """
        if _kind(mask) != self._kind:
            return False
        source = self._source
        if source is not None and _version(source) != self._version:
            source = None  # overwritten since
        if source is not None and _is_view(mask, source):
            return True
        one_row = self._expanded and _is_expanded(mask)
        if self._sample is not None and (trusted or one_row):
            return torch.equal(mask[..., self._rows, :], self._sample)
        return source is not None and torch.equal(mask, source)

    def release(self) -> None:
        """Let go of a mask of all pairs of tokens; its rows tell copies from now on."""
        if self._sample is not None:
            self._source = None


class MaskBook:
    """The masks of one transformer in one generation, reduced to key padding.

    Looking at a mask may wait for the device, so each is looked at once: the last one of each
    branch is kept, and other layers' are recognised as the same.
    """

    def __init__(self) -> None:
        self._newest: dict[str, KeyMask] = {}  # by branch
        self._padding: set[tuple[str, int]] = set()  # branch and layer, whose masks are padding
        self._refused: set[tuple[str, int]] = set()  # ... and whose are not

    def refused(self, branch: str, layer: int) -> bool:
        """Whether a mask of this layer was refused before."""
        return (branch, layer) in self._refused

    def key_mask(
        self, branch: str, layer: int, mask: Tensor, image: slice | None = None
    ) -> Tensor | None:
        """A mask as `(B, L)`, True for keys that take part; None where all do.

        Of masks of all pairs of tokens, each layer's is looked at in full once.

        Args:
            branch: of the call.
            layer: index of the attention layer.
            mask: as attention was given it.
            image: where tokens of the latents are, None where that is not known.

        Raises:
            NotKeyPadding: it says more; `refused` says so from now on.
        """
        where = (branch, layer)
        known = self._newest.get(branch)
        if known is None or not known.covers(mask, trusted=where in self._padding):
            try:
                known = self._newest[branch] = KeyMask(mask, image)
            except NotKeyPadding:
                self._refused.add(where)
                raise
        self._padding.add(where)
        return known.keys

    def release(self, branch: str) -> None:
        """A transformer call of this branch has ended: large masks are let go."""
        if branch in self._newest:
            self._newest[branch].release()


def _is_expanded(mask: Tensor) -> bool:
    """Whether all rows of queries are one row in memory."""
    return mask.ndim > 2 and mask.shape[-2] > 1 and mask.stride(-2) == 0


def _kind(mask: Tensor) -> tuple[Any, ...]:
    return mask.shape, mask.dtype, mask.device


def _version(mask: Tensor) -> int:
    """A count of writes, which tensors of inference mode do not keep."""
    return 0 if mask.is_inference() else mask._version


def _is_view(mask: Tensor, source: Tensor) -> bool:
    return mask.data_ptr() == source.data_ptr() and mask.stride() == source.stride()
