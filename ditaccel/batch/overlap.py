"""Where a pipeline call stops denoising, so that the next one may start while it is decoded.

Pipelines differ in what they do around the VAE, so nothing of it is copied: the whole call runs on
a thread of its own, and `vae.decode` (replaced on this one instance) passes the baton on. Scaling,
unpacking and post-processing stay the pipeline's own, and the output is the plain call's, bit for
bit. The VAE itself serves one call at a time, for encoding as well: video VAEs keep their
convolutions' history in the module.

The first call keeps the baton to its end and shows whether the pipeline comes back to its
transformer after decoding (some make clips in sections); if so, calls never overlap.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..core.kinds import free_hooks, pictures_of, unlogged
from ..core.transformers import denoisers_of
from ..io.models import execution_device


class Leaving(BaseException):
    """Leaves a pipeline call.

    It is not an `Exception`: blocks of modular pipelines log those, with their traceback.
    """


class Interrupted(Leaving):
    """The worker was told to stop in the middle of a call."""


class Retry(Leaving):
    """Another call got in between; the same call must be made again."""


class _LatentsOnly(Leaving):
    """Leaves a pipeline call at its decoder: nothing behind it is wanted."""


def wait_for(device: torch.device) -> None:
    """Wait until a CUDA device has done all it was given; elsewhere calls return when done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


class Turn:
    """One pipeline call in progress.

    Attributes:
        latents: what the decoder got, if asked for.
        denoise_seconds: from the start of the call to the decoder.
        decode_seconds: inside the decoder.
        wait_seconds: for the decoder to be free.
    """

    def __init__(self, overlap: bool, decode: bool, keep: bool, seen: Callable[[], Any]) -> None:
        self.overlap, self.decode, self.keep = overlap, decode, keep
        self._seen = seen
        self.began = time.perf_counter()
        self.latents: torch.Tensor | None = None
        self.denoise_seconds = self.decode_seconds = self.wait_seconds = 0.0
        self.decodes = 0
        self.late_calls = 0
        self.holds = True
        self.stats: Any = None

    def denoised(self) -> None:
        """Book what the call did so far; the next call's work must not be counted in."""
        if self.stats is None:
            self.stats = self._seen()


class Seam:
    """Runs pipeline calls one behind the other, decoding beside denoising.

    Args:
        pipe: a diffusers pipeline; its VAE's `decode` and `encode` are replaced on the instance.
        overlap: False never lets calls overlap.
    """

    def __init__(self, pipe: Any, overlap: bool = True) -> None:
        self.pipe = pipe
        self.stopping = False
        # None: the first call will show.
        self.overlap: bool | None = None if overlap and not self._offloads() else False
        self._local = threading.local()
        self.baton = threading.Lock()
        self._vae_lock = threading.Lock()
        self._spoilt = 0
        self._handles = [
            part.register_forward_pre_hook(self._before_transformer)
            for part in denoisers_of(pipe).values()
        ]
        self._vae = getattr(pipe, "vae", None)
        if self._vae is not None:
            self._decode, self._encode = self._vae.decode, self._vae.encode
            self._vae.decode, self._vae.encode = self._decoding, self._encoding
        elif self.overlap is None:
            self.overlap = False

    def _offloads(self) -> bool:
        """Whether modules move between devices at the end of a call."""
        return bool(getattr(self.pipe, "_all_hooks", None)) or any(
            hasattr(part, "_hf_hook") for part in self.pipe.components.values()
        )

    def close(self) -> None:
        """Take everything off the pipeline."""
        for handle in self._handles:
            handle.remove()
        if self._vae is not None:
            del self._vae.decode, self._vae.encode

    def _turn(self) -> Turn | None:
        return getattr(self._local, "turn", None)

    def _before_transformer(self, module: nn.Module, args: Any) -> None:
        if self.stopping:
            raise Interrupted
        turn = self._turn()
        if turn is None or not turn.decodes:
            return
        turn.late_calls += 1
        if not turn.holds:
            # The other call's scheduler may have been reset under it: both are made again.
            self.overlap = False
            self._spoilt += 1
            raise Retry

    def _encoding(self, *args: Any, **kwargs: Any) -> Any:
        with self._vae_lock:
            return self._encode(*args, **kwargs)

    def _decoding(self, z: Any, *args: Any, **kwargs: Any) -> Any:
        turn = self._turn()
        if turn is None:
            return self._decode(z, *args, **kwargs)
        wait_for(execution_device(self.pipe))
        turn.decodes += 1
        if turn.decodes == 1:
            turn.denoise_seconds = time.perf_counter() - turn.began
        if turn.keep and turn.latents is None:
            turn.latents = z.detach().cpu().clone()
        if not turn.decode:
            raise _LatentsOnly
        if turn.overlap and turn.holds:
            turn.denoised()
            turn.holds = False
            self.baton.release()
        start = time.perf_counter()
        with self._vae_lock:
            begun = time.perf_counter()
            output = self._decode(z, *args, **kwargs)
            wait_for(execution_device(self.pipe))
        turn.wait_seconds += begun - start
        turn.decode_seconds += time.perf_counter() - begun
        return output

    def settle(self) -> None:
        """Wait until nothing is being decoded (memory is short). The caller holds the baton."""
        with self._vae_lock:
            return

    def call(
        self,
        arguments: dict[str, Any],
        *,
        decode: bool = True,
        keep_latents: bool = False,
        alone: bool = False,
        seen: Callable[[], Any] = lambda: {},
    ) -> tuple[Any, Turn]:
        """Call the pipeline. The caller holds the baton; it is free when this returns.

        Args:
            arguments: of the pipeline call.
            decode: False stops at the decoder.
            keep_latents: keep what the decoder gets.
            alone: do not overlap, whatever is known.
            seen: asked once, when denoising ends; its answer becomes `Turn.stats`.

        Returns:
            The pipeline's frames or images (None without decoding), and how it went.

        Raises:
            Interrupted: the worker is stopping.
            Retry: the call must be made again.
        """
        turn = Turn(self.overlap is True and not alone, decode, keep_latents, seen)
        spoilt = self._spoilt
        self._local.turn = turn
        value = None
        try:
            try:
                with unlogged():
                    value = pictures_of(self.pipe, self.pipe(**arguments))
            except _LatentsOnly:
                free_hooks(self.pipe)
            if self._spoilt != spoilt:
                raise Retry
            if turn.holds:
                turn.denoised()
                if not turn.decodes or turn.late_calls:
                    total = time.perf_counter() - turn.began
                    turn.denoise_seconds = total - turn.decode_seconds - turn.wait_seconds
                if self.overlap is None and not alone:
                    self.overlap = turn.decodes > 0 and not turn.late_calls
        finally:
            self._local.turn = None
            if turn.holds:
                turn.holds = False
                self.baton.release()
        return value, turn
