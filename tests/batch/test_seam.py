"""Decoding beside denoising: bit-exact, one decoder at a time, and off where it cannot work."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_dit
from torch import nn

from ditaccel.batch.overlap import Interrupted, Retry, Seam


class Output:
    def __init__(self, images: Any) -> None:
        self.images = images


class FakeVae(nn.Module):
    """Notes who is inside, and stays there for a moment."""

    def __init__(self) -> None:
        super().__init__()
        self.inside = self.most = 0

    def decode(self, z: torch.Tensor, return_dict: bool = True) -> torch.Tensor:
        self.inside += 1
        self.most = max(self.most, self.inside)
        time.sleep(0.05)
        self.inside -= 1
        return z + 1

    def encode(self, x: torch.Tensor) -> torch.Tensor:
        return self.decode(x)


class FakePipe:
    """Denoises, decodes; in `sections` it comes back to the transformer after decoding."""

    def __init__(self, sections: int = 1) -> None:
        self.transformer, self.vae, self.sections = nn.Identity(), FakeVae(), sections
        self.state = None
        self.denoising = self.most = 0

    @property
    def components(self) -> dict[str, nn.Module]:
        return {"transformer": self.transformer, "vae": self.vae}

    _execution_device = torch.device("cpu")

    def maybe_free_model_hooks(self) -> None:
        self.freed = True

    def __call__(self, x: float) -> Output:
        out = torch.tensor(x)
        for _ in range(self.sections):
            for _ in range(3):
                self.transformer(out)
                self.state = x  # not before: a call is only stopped at the transformer
                time.sleep(0.01)
                assert self.state == x, "another call denoised at the same time"
            out = self.vae.decode(out)
        return Output(out)


def call(seam: Seam, x: float, **options: Any) -> Any:
    seam.baton.acquire()
    return seam.call({"x": x}, **options)


def together(seam: Seam, count: int, lanes: int = 2) -> list[float]:
    """Make `count` calls from several threads; returns the values in order of x."""
    left, made, errors = list(range(count)), {}, []

    def lane() -> None:
        while True:
            seam.baton.acquire()
            if not left:
                seam.baton.release()
                return
            x = left.pop(0)
            for _ in range(4):
                try:
                    made[x] = float(seam.call({"x": float(x)})[0])
                    break
                except Retry:
                    seam.baton.acquire()
                except BaseException as error:
                    errors.append(error)
                    return

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not errors, errors
    return [made[x] for x in range(count)]


def test_calls_overlap_after_the_first(monkeypatch: pytest.MonkeyPatch) -> None:
    pipe = FakePipe()
    seam = Seam(pipe)
    began = time.monotonic()
    assert together(seam, 4) == [1.0, 2.0, 3.0, 4.0]
    overlapped = time.monotonic() - began
    assert seam.overlap is True and pipe.vae.most == 1
    del overlapped  # seconds prove nothing on a busy machine; the next test proves it without
    seam.close()
    assert "decode" not in vars(pipe.vae) and not pipe.transformer._forward_pre_hooks


def test_the_next_call_may_begin_while_one_decodes() -> None:
    pipe = FakePipe()
    seam = Seam(pipe)
    call(seam, 0.0)
    free = threading.Event()
    plain = seam._decode

    def decode(*args: Any, **kwargs: Any) -> Any:
        assert seam.baton.acquire(timeout=5), "the baton was not passed on"
        seam.baton.release()
        free.set()
        return plain(*args, **kwargs)

    seam._decode = decode
    call(seam, 1.0)
    assert free.is_set()


def test_pipelines_that_come_back_to_their_transformer_never_overlap() -> None:
    pipe = FakePipe(sections=2)
    seam = Seam(pipe)
    assert together(seam, 4) == [2.0, 3.0, 4.0, 5.0]
    assert seam.overlap is False


def test_a_late_transformer_call_is_caught_and_both_calls_made_again() -> None:
    pipe = FakePipe()
    seam = Seam(pipe)
    together(seam, 1)
    pipe.sections = 2  # only now: the first call could not show it
    assert together(seam, 4) == [2.0, 3.0, 4.0, 5.0]
    assert seam.overlap is False


def test_latents_only_never_decode() -> None:
    pipe = FakePipe()
    seam = Seam(pipe)
    value, turn = call(seam, 3.0, decode=False, keep_latents=True)
    assert value is None and float(turn.latents) == 3.0 and pipe.vae.most == 0 and pipe.freed
    assert seam.baton.acquire(timeout=1)


def test_stopping_leaves_at_the_next_transformer_call() -> None:
    seam = Seam(FakePipe())
    seam.stopping = True
    with pytest.raises(Interrupted):
        call(seam, 1.0)
    assert seam.baton.acquire(timeout=1)


def test_statistics_are_taken_before_the_next_call_begins() -> None:
    seam = Seam(FakePipe())
    call(seam, 0.0)
    held: list[bool] = []
    _, turn = call(seam, 1.0, seen=lambda: held.append(seam.baton.locked()) or {"calls": 3})
    assert held == [True] and turn.stats == {"calls": 3}


@pytest.mark.parametrize("lanes", [1, 3])
def test_a_real_pipeline_is_bit_exact(lanes: int) -> None:
    pipe, arguments = tiny_dit(layers=2)

    def run(caller: Callable[..., Any], seed: int) -> np.ndarray:
        noise = torch.Generator().manual_seed(seed)
        return np.asarray(caller({**arguments, "generator": noise}))

    want = [run(lambda a: pipe(**a).images, seed) for seed in range(5)]
    seam, made, left = Seam(pipe), {}, list(range(5))

    def lane() -> None:
        torch.set_num_threads(1)
        while True:
            seam.baton.acquire()
            if not left:
                seam.baton.release()
                return
            seed = left.pop()
            made[seed] = run(lambda a: seam.call(a)[0], seed)

    threads = [threading.Thread(target=lane) for _ in range(lanes)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seam.overlap is True
    assert all(np.array_equal(made[seed], want[seed]) for seed in range(5))
