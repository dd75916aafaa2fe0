"""Encoded training data, made once by the trained autoencoders and kept under `runs/pools`."""

from __future__ import annotations

from dataclasses import asdict
from itertools import pairwise
from pathlib import Path

import torch
from data import Scenes, captions, held_out, render, sample_scenes
from diffusers import FluxPipeline
from loop import RUNS, autocast, averaged, compile_blocks, device, plain_attention
from text import TOKENS
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


class Trajectories:
    """Ways from noise to picture that shapes-flux takes with its guidance, at the nodes of a loop.

    What flux-few is distilled from: latents (nodes, N, tokens, channels) and captions. They may be
    recorded while the training runs: every call of `look` takes up new ones.
    """

    NAME = "flux-few"
    RECORD = "pools.py flux-few"  # the script that records them
    EXPORT = "export.py flux"  # the script that exports the teacher
    STEPS = 8
    TEACHER = Path(__file__).resolve().parents[1] / "models" / "shapes-flux"
    CHUNK = 128
    SHAPE = (64, 16)  # of the latents of a picture: tokens, channels
    TOKENS = TOKENS
    _GUIDANCE = 4.0
    _SUBSTEPS = 3  # of the teacher, between two nodes
    _TWO_OBJECTS = 0.6

    def __init__(self) -> None:
        self._opened: dict[Path, dict] = {}
        self.look()
        if not self._opened:
            raise FileNotFoundError(f"no pool: run `python samples/train/{self.RECORD} N`")

    def look(self) -> None:
        """Open what was recorded since."""
        for path in _files(self.NAME):
            if path not in self._opened:
                self._opened[path] = torch.load(path, weights_only=True, mmap=True)

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Random ones (n, nodes, tokens, channels) in float32, and their captions."""
        chunks = list(self._opened.values())
        picks = torch.randint(len(chunks) * self.CHUNK, (n,), generator=generator).tolist()
        rows = [(chunks[p // self.CHUNK], p % self.CHUNK) for p in picks]
        nodes = torch.stack([chunk["nodes"][:, i].float() for chunk, i in rows])
        return nodes, [chunk["texts"][i] for chunk, i in rows]

    @staticmethod
    def positions() -> Tensor:
        """Rotary positions of the image tokens."""
        return FluxPipeline._prepare_latent_image_ids(1, 8, 8, device(), torch.float32)

    @classmethod
    def captions(cls, generator: torch.Generator) -> list[str]:
        """Some captions that are not held out."""
        share = cls._TWO_OBJECTS
        scenes = sample_scenes(cls.CHUNK, generator, two_share=share, snap=True)
        return [text for text in captions(scenes, generator) if not held_out(text)]

    @classmethod
    @torch.no_grad()
    def conditions(cls, pipe: FluxPipeline, texts: list[str]) -> dict[str, Tensor]:
        """The arguments of the transformer that say what to draw."""
        embeds, pooled, ids = pipe.encode_prompt(
            texts, texts, device=device(), max_sequence_length=cls.TOKENS
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": ids}

    @classmethod
    def teacher(cls) -> FluxPipeline:
        """The pipeline that is distilled.

        Raises:
            FileNotFoundError: it has not been exported.
        """
        if not cls.TEACHER.is_dir():
            raise FileNotFoundError(f"no teacher: run `python samples/train/{cls.EXPORT}`")
        return FluxPipeline.from_pretrained(cls.TEACHER).to(device())

    @classmethod
    @torch.no_grad()
    def solve(cls, pipe: FluxPipeline, texts: list[str], noise: Tensor) -> Tensor:
        """Latents at the nodes; Adams-Bashforth of order 2 on the guided velocity."""
        said, empty = cls.conditions(pipe, texts), cls.conditions(pipe, [""] * len(texts))
        both = {k: v if k == "txt_ids" else torch.cat([said[k], empty[k]]) for k, v in said.items()}
        level = flux_levels(cls.STEPS * cls._SUBSTEPS, pipe.scheduler.config.shift).tolist()
        latents, nodes, last = noise, [noise], None
        for i, (now, then) in enumerate(pairwise(level)):
            with autocast(), plain_attention():
                output = pipe.transformer(
                    hidden_states=torch.cat([latents, latents]),
                    timestep=torch.full((2 * len(texts),), now, device=device()),
                    img_ids=cls.positions(),
                    **both,
                ).sample.float()
            asked, free = output.chunk(2)
            velocity = free + cls._GUIDANCE * (asked - free)
            step, mean = then - now, velocity
            if last is not None:
                mean = velocity + step / (2 * last[1]) * (velocity - last[0])
            latents, last = latents + step * mean, (velocity, step)
            if (i + 1) % cls._SUBSTEPS == 0:
                nodes.append(latents)
        return torch.stack(nodes)

    @classmethod
    def record(cls, count: int) -> None:
        """Grow them to at least `count`; chunk numbers seed the data."""
        FOLDER.mkdir(parents=True, exist_ok=True)
        pipe = cls.teacher()
        compile_blocks(pipe.transformer)
        for number in tqdm(range(len(_files(cls.NAME)), -(-count // cls.CHUNK))):
            generator = torch.Generator().manual_seed(50_000 + number)
            texts: list[str] = []
            while len(texts) < cls.CHUNK:
                texts += cls.captions(generator)
            texts = texts[: cls.CHUNK]
            noise = torch.randn(cls.CHUNK, *cls.SHAPE, generator=generator).to(device())
            nodes = cls.solve(pipe, texts, noise).half().cpu()
            path = FOLDER / f"{cls.NAME}-{number:04d}.pt"
            torch.save({"nodes": nodes, "texts": texts}, path.with_suffix(".tmp"))
            path.with_suffix(".tmp").replace(path)


def flux_levels(steps: int, shift: float) -> Tensor:
    """Noise levels (steps + 1,) of the loop that `FluxPipeline` runs, the last one 0."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=[*_CHUNK, "flux-few"])
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.name == "flux-few":
        Trajectories.record(arguments.count)
    else:
        extend(arguments.name, arguments.count)
