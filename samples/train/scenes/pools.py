"""Encoded pictures and clips of scenes, and what makes their latents white.

    python samples/train/scenes_pool.py pictures 24576

Chunk numbers seed the data, so a pool that grows keeps what it had.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from loop import RUNS, autocast, averaged, device
from torch import Tensor
from tqdm import tqdm

from scenes.vae import SCALE, SHRINK, build_vae, halved, roots
from scenes.video import FRAMES, LATENT_FRAMES, build_video_vae, clip_scenes
from scenes.words import captions, held_out
from scenes.world import SIZE, Scenes, render, sample_scenes

FOLDER = RUNS / "pools"
CHUNK = 2048
_BATCH = 32
SIDE = SIZE // SHRINK  # of the latents of whole pictures


def files(kind: str = "scenes") -> list[Path]:
    """The chunks of a pool that are there, in order."""
    return sorted(FOLDER.glob(f"{kind}-[0-9]*.pt"))


def _stored(kind: str, number: int, state: dict) -> None:
    path = FOLDER / f"{kind}-{number:04d}.pt"
    temporary = path.with_suffix(".tmp")
    torch.save(state, temporary)
    temporary.replace(path)


@torch.no_grad()
def extend(count: int, chunk: int = CHUNK) -> None:
    """Grow the pool to at least `count` pictures, each encoded at both resolutions.

    Args:
        count: pictures.
        chunk: pictures per file, which is written in one go.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    vae = averaged("scenes-vae", build_vae())
    for number in range(len(files()), -(-count // chunk)):
        scenes = sample_scenes(chunk, torch.Generator().manual_seed(5000 + number))
        whole, small = [], []
        for start in tqdm(range(0, chunk, _BATCH), desc=f"pool scenes {number}", mininterval=10):
            pictures = render(scenes[start : start + _BATCH])[:, 0].mul(2).sub(1).to(device())
            with autocast():
                for kept, seen in ((whole, pictures), (small, halved(pictures))):
                    kept.append(vae.encode(seen).latent_dist.mean.bfloat16().cpu())
        state = {"whole": torch.cat(whole), "small": torch.cat(small), "scenes": asdict(scenes)}
        _stored("scenes", number, state)


@torch.no_grad()
def extend_clips(count: int, *, single: bool, chunk: int | None = None) -> None:
    """Grow the pool of clips, or of their first frames, to at least `count`.

    Args:
        count: clips.
        single: first frames alone.
        chunk: clips per file.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    vae = averaged("scenes-video-vae", build_video_vae())
    kind = "frames" if single else "clips"
    chunk = chunk or (CHUNK if single else CHUNK // 16)
    batch = _BATCH if single else 1
    for number in range(len(files(kind)), -(-count // chunk)):
        seed = 7000 + number if single else 9000 + number
        scenes = clip_scenes(chunk, torch.Generator().manual_seed(seed))
        latents = []
        for start in tqdm(range(0, chunk, batch), desc=f"pool {kind} {number}", mininterval=10):
            # Frames are encoded in groups of 1 + 4 k; causal, so later ones change nothing.
            clip = render(scenes[start : start + batch], 1 if single else FRAMES + 2)
            clip = clip.mul(2).sub(1).transpose(1, 2).to(device())
            with autocast():
                mean = vae.encode(clip).latent_dist.mean[:, :, :LATENT_FRAMES]
            latents.append(mean.bfloat16().cpu())
        _stored(kind, number, {"latents": torch.cat(latents), "scenes": asdict(scenes)})


def statistics() -> tuple[Tensor, Tensor]:
    """Mean (C,) and covariance (C, C) of the latents of whole pictures of the first chunk."""
    path = FOLDER / "statistics-scenes.pt"
    if not path.exists():
        latents = torch.load(files()[0], weights_only=True)["whole"].float()
        flat = latents.transpose(0, 1).flatten(1)
        torch.save([flat.mean(1), torch.cov(flat)], path)
    mean, covariance = torch.load(path, weights_only=True)
    return mean, covariance


def clip_statistics() -> tuple[Tensor, Tensor]:
    """Mean and spread (C,) of the latents of the first chunk of clips, of first frames without any.

    WanPipeline knows a mean and a spread per channel; the autoencoder was taught to keep channels
    apart. What is found first is kept, since a denoiser may have learnt from it.
    """
    path = FOLDER / "statistics-clips.pt"
    if not path.exists():
        # A clip's first latent frame shows one frame, the others two.
        first = [*files("clips"), *files("frames")][0]
        latents = torch.load(first, weights_only=True)["latents"].float()
        flat = latents.transpose(0, 1).flatten(1)
        torch.save([flat.mean(1), flat.std(1)], path)
    mean, spread = torch.load(path, weights_only=True)
    return mean, spread


def texts(scenes: Scenes, generator: torch.Generator, drop: float) -> list[str]:
    """Captions, with a share of `drop` and all held-out ones replaced by the empty prompt."""
    dropped = (torch.rand(len(scenes), generator=generator) < drop).tolist()
    return [
        "" if gone or held_out(text) else text
        for gone, text in zip(dropped, captions(scenes, generator), strict=True)
    ]


class Pool:
    """Whitened latents, of spread `SCALE`, and the scenes they show.

    Args:
        limit: use the first so many pictures, so that a pool that grew gives the same batches.
    """

    def __init__(self, limit: int | None = None) -> None:
        # Mapped, not read: batches touch what they draw.
        parts = [torch.load(p, weights_only=True, mmap=True) for p in files()]
        if not parts:
            raise FileNotFoundError("no pool: run `python samples/train/scenes_pool.py N`")
        self.mean, covariance = statistics()
        self.inwards, _ = roots(covariance)
        self._latents = {name: [part[name] for part in parts] for name in ("whole", "small")}
        names = parts[0]["scenes"]
        self.scenes = Scenes(**{k: torch.cat([p["scenes"][k] for p in parts]) for k in names})
        self._chunk = len(parts[0]["whole"])
        self.count = min(limit or len(self.scenes), len(self.scenes))

    def batch(self, n: int, small: bool, generator: torch.Generator) -> tuple[Tensor, Scenes]:
        """Random latents (n, C, side, side) in float32 and their scenes."""
        index = torch.randint(self.count, (n,), generator=generator)
        stored = self._latents["small" if small else "whole"]
        chosen = [stored[i // self._chunk][i % self._chunk] for i in index.tolist()]
        latents = torch.stack(chosen).float() - self.mean[:, None, None]
        with torch.autocast("cpu", enabled=False):
            white = torch.einsum("cd,ndhw->nchw", self.inwards, latents)
            return SCALE * white, self.scenes[index]


class Clips:
    """Latents of clips, or of their first frames, of spread `SCALE`, and the scenes they show.

    Args:
        single: first frames alone.
    """

    def __init__(self, *, single: bool) -> None:
        kind = "frames" if single else "clips"
        parts = [torch.load(p, weights_only=True, mmap=True) for p in files(kind)]
        if not parts:
            raise FileNotFoundError(f"no pool: run `python samples/train/scenes_pool.py {kind} N`")
        self.mean, self.spread = clip_statistics()
        self._latents = [part["latents"] for part in parts]
        names = parts[0]["scenes"]
        self.scenes = Scenes(**{k: torch.cat([p["scenes"][k] for p in parts]) for k in names})

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Scenes]:
        """Random latents (n, C, F, side, side) in float32 and their scenes."""
        index = torch.randint(len(self.scenes), (n,), generator=generator)
        chunk = len(self._latents[0])
        chosen = [self._latents[i // chunk][i % chunk] for i in index.tolist()]
        view = (-1, 1, 1, 1)
        latents = torch.stack(chosen).float()
        spread = self.spread.view(view) / SCALE
        return (latents - self.mean.view(view)) / spread, self.scenes[index]
