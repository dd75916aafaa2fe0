"""Encoded training data, made once by the trained autoencoders and kept under `runs/pools`."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from data import Scenes, captions, held_out, render, sample_scenes
from loop import RUNS, autocast, averaged, device
from torch import Tensor
from tqdm import tqdm
from vae import build_image_vae, build_video_vae

FOLDER = RUNS / "pools"
# The autoencoder takes frames in groups 1 + 4 k; 65 frames give 33 latent frames, of which the
# causal first 32 stand for 63 frames.
ENCODED_FRAMES = 65
LATENT_FRAMES = 32
_CHUNK = {"dit": 8192, "flux": 8192, "wan-images": 8192, "wan": 256}


class Pool:
    """Latents, normalised to zero mean and unit spread, and the scenes they show.

    Args:
        name: "dit", "flux", "wan-images" or "wan".
        two_share: draw this share of scenes with two objects, whatever the pool's own is: they are
            learnt last.
    """

    def __init__(self, name: str, two_share: float | None = None) -> None:
        parts = [torch.load(p, weights_only=True) for p in _files(name)]
        if not parts:
            raise FileNotFoundError(f"no pool {name}: run `python samples/train/pools.py {name} N`")
        mean, std = statistics("wan" if name.startswith("wan") else "image")
        self.shift, self.scale = mean, std
        self.latents = torch.cat([p["latents"] for p in parts])
        names = parts[0]["scenes"]
        self.scenes = Scenes(**{k: torch.cat([p["scenes"][k] for p in parts]) for k in names})
        self._piles = [(self.scenes.count == count).nonzero()[:, 0] for count in (1, 2)]
        self._two_share = two_share

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Scenes]:
        """Random latents (n, C, [F,] 16, 16) in float32 and their scenes."""
        index = torch.randint(len(self.latents), (n,), generator=generator)
        if self._two_share is not None:
            ones, twos = (pile[index % len(pile)] for pile in self._piles)
            index = torch.where(torch.rand(n, generator=generator) < self._two_share, twos, ones)
        latents = self.latents[index].float()
        view = (1, -1, *[1] * (latents.ndim - 2))
        return (latents - self.shift.view(view)) / self.scale.view(view), self.scenes[index]

    @staticmethod
    def texts(scenes: Scenes, generator: torch.Generator, drop: float) -> list[str]:
        """Captions, with a share of `drop` and all held-out ones replaced by the empty prompt."""
        dropped = (torch.rand(len(scenes), generator=generator) < drop).tolist()
        return [
            "" if gone or held_out(text) else text
            for gone, text in zip(dropped, captions(scenes, generator), strict=True)
        ]


def _files(name: str) -> list[Path]:
    return sorted(FOLDER.glob(f"{name}-[0-9]*.pt"))


def statistics(kind: str) -> tuple[Tensor, Tensor]:
    """Mean and spread of the latents, per channel for "wan", one number each for "image".

    The image pipelines share one scale and know no shift.
    """
    path = FOLDER / f"statistics-{kind}.pt"
    if not path.exists():
        name = "wan" if kind == "wan" else "dit"
        part = torch.load(_files(name)[0], weights_only=True)["latents"].float()
        if kind == "wan":
            axes = [0, 2, 3, 4]
            mean, std = part.mean(axes), part.std(axes)
        else:
            mean, std = torch.zeros(1), part.square().mean().sqrt()[None]
        torch.save([mean, std], path)
    mean, std = torch.load(path, weights_only=True)
    return mean, std


@torch.no_grad()
def extend(name: str, count: int) -> None:
    """Grow a pool to at least `count` examples; chunk numbers seed the data."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    video = name.startswith("wan")
    vae = build_video_vae() if video else build_image_vae()
    vae = averaged("video-vae" if video else "image-vae", vae)
    chunk = _CHUNK[name]
    batch = 16 if name == "wan" else 128
    for number in range(len(_files(name)), -(-count // chunk)):
        generator = torch.Generator().manual_seed(1000 + number + 7919 * len(name))
        two = 0.0 if name == "dit" else 0.4
        scenes = sample_scenes(chunk, generator, moving=video, two_share=two, snap=True)
        latents = []
        for start in tqdm(range(0, chunk, batch), desc=f"pool {name} {number}"):
            frames = ENCODED_FRAMES if name == "wan" else 1
            clip = render(scenes[start : start + batch], frames).mul(2).sub(1).to(device())
            with autocast():
                if video:
                    mean = vae.encode(clip.transpose(1, 2)).latent_dist.mean
                    latents.append(mean[:, :, :LATENT_FRAMES].bfloat16().cpu())
                else:
                    latents.append(vae.encode(clip[:, 0]).latent_dist.mean.bfloat16().cpu())
        path = FOLDER / f"{name}-{number:04d}.pt"
        torch.save({"latents": torch.cat(latents), "scenes": asdict(scenes)}, path)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=_CHUNK)
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    extend(arguments.name, arguments.count)
