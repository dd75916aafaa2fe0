"""Distil shapes-flux to few steps: `python samples/train/few_steps.py COUNT` records its teacher.

Trajectory distillation: the teacher (shapes-flux with its guidance) solves the flow from noise to
picture in 24 second-order steps, and the latents at the nodes of an 8-step loop are kept. The
student learns the velocity that leads from a node to the next one in one Euler step, guidance
included, so that it needs one transformer call per step. A share of the examples leads over two
nodes, from the nodes of a 4-step loop: one model serves both. Text encoders and autoencoder are the
teacher's.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from data import captions, held_out, sample_scenes
from diffusers import FluxPipeline, FluxTransformer2DModel
from loop import RUNS, autocast, compile_blocks, device, plain_attention
from text import TOKENS
from torch import Tensor
from tqdm import tqdm

TEACHER = Path(__file__).resolve().parents[1] / "models" / "shapes-flux"
FOLDER = RUNS / "pools"
STEPS = 8
GUIDANCE = 4.0
CHUNK = 128
_SUBSTEPS = 3  # of the teacher, between two nodes
_SIDE, _CHANNELS = 8, 16  # tokens along a side, channels of a packed latent
_TWO_OBJECTS = 0.6
_SPAN_TWO = 0.3  # share of the examples that lead over two nodes


def levels(steps: int, shift: float) -> Tensor:
    """Noise levels (steps + 1,) of the loop that `FluxPipeline` runs, the last one 0."""
    even = torch.linspace(1, 0, steps + 1)
    return shift * even / (1 + (shift - 1) * even)


class Texts:
    """The teacher's text encoders as functions of captions."""

    def __init__(self, pipe: Any) -> None:
        self._pipe = pipe

    @torch.no_grad()
    def __call__(self, texts: list[str]) -> dict[str, Tensor]:
        """The arguments of the transformer that say what to draw."""
        embeds, pooled, ids = self._pipe.encode_prompt(
            texts, texts, device=device(), max_sequence_length=TOKENS
        )
        return {"encoder_hidden_states": embeds, "pooled_projections": pooled, "txt_ids": ids}


def _positions() -> Tensor:
    return FluxPipeline._prepare_latent_image_ids(1, _SIDE, _SIDE, device(), torch.float32)


def _teacher() -> Any:
    pipe = FluxPipeline.from_pretrained(TEACHER).to(device())
    pipe.transformer.requires_grad_(False)
    return pipe


def student() -> FluxTransformer2DModel:
    """What is trained: the teacher's transformer, to begin with."""
    model = FluxTransformer2DModel.from_pretrained(TEACHER / "transformer")
    return model.train()


@torch.no_grad()
def solve(pipe: Any, texts: list[str], noise: Tensor) -> Tensor:
    """The teacher's latents at the nodes, (STEPS + 1, N, tokens, channels).

    Adams-Bashforth of order 2 on the guided velocity.
    """
    encode = Texts(pipe)
    said, empty = encode(texts), encode([""] * len(texts))
    both = {k: v if k == "txt_ids" else torch.cat([said[k], empty[k]]) for k, v in said.items()}
    level = levels(STEPS * _SUBSTEPS, pipe.scheduler.config.shift).tolist()
    latents, nodes, last = noise, [noise], None
    for i, (now, then) in enumerate(pairwise(level)):
        with autocast(), plain_attention():
            output = pipe.transformer(
                hidden_states=torch.cat([latents, latents]),
                timestep=torch.full((2 * len(texts),), now, device=device()),
                img_ids=_positions(),
                **both,
            ).sample.float()
        asked, free = output.chunk(2)
        velocity = free + GUIDANCE * (asked - free)
        step, mean = then - now, velocity
        if last is not None:
            mean = velocity + step / (2 * last[1]) * (velocity - last[0])
        latents, last = latents + step * mean, (velocity, step)
        if (i + 1) % _SUBSTEPS == 0:
            nodes.append(latents)
    return torch.stack(nodes)


def _files() -> list[Path]:
    return sorted(FOLDER.glob("flux-few-[0-9]*.pt"))


def record(count: int) -> None:
    """Grow the recorded trajectories to at least `count`; chunk numbers seed the data."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    pipe = _teacher()
    compile_blocks(pipe.transformer)
    for number in tqdm(range(len(_files()), -(-count // CHUNK)), desc="trajectories"):
        generator = torch.Generator().manual_seed(50_000 + number)
        texts: list[str] = []
        while len(texts) < CHUNK:
            scenes = sample_scenes(CHUNK, generator, two_share=_TWO_OBJECTS, snap=True)
            texts += [text for text in captions(scenes, generator) if not held_out(text)]
        texts = texts[:CHUNK]
        noise = torch.randn(CHUNK, _SIDE**2, _CHANNELS, generator=generator).to(device())
        nodes = solve(pipe, texts, noise).half().cpu()
        path = FOLDER / f"flux-few-{number:04d}.pt"
        torch.save({"nodes": nodes, "texts": texts}, path.with_suffix(".tmp"))
        path.with_suffix(".tmp").replace(path)


def few_loss(batch: int) -> Callable:
    """The velocity from a node to the next one, or over two from the nodes of a 4-step loop.

    Trajectories that are recorded while the training runs are taken up every 50 steps.
    """
    pipe = _teacher()
    encode, level = Texts(pipe), levels(STEPS, pipe.scheduler.config.shift)
    del pipe.transformer
    opened: dict[Path, Any] = {}

    def draw(generator: torch.Generator) -> tuple[Tensor, list[str]]:
        """Trajectories (batch, STEPS + 1, tokens, channels) in float32, and their captions."""
        chunk = list(opened.values())
        picks = torch.randint(len(chunk) * CHUNK, (batch,), generator=generator).tolist()
        rows = [(chunk[p // CHUNK], p % CHUNK) for p in picks]
        nodes = torch.stack([c["nodes"][:, i].float() for c, i in rows])
        return nodes, [c["texts"][i] for c, i in rows]

    def loss(model: FluxTransformer2DModel, step: int, generator: torch.Generator) -> Tensor:
        if step % 50 == 0 or not opened:
            opened.update(
                (p, torch.load(p, weights_only=True)) for p in _files() if p not in opened
            )
        nodes, texts = draw(generator)
        start = torch.randint(STEPS, (batch,), generator=generator)
        two = torch.rand(batch, generator=generator) < _SPAN_TWO
        start = torch.where(two, start // 2 * 2, start)
        end = start + 1 + two
        rows = torch.arange(batch)
        here, there = nodes[rows, start], nodes[rows, end]
        target = (there - here) / (level[end] - level[start])[:, None, None]
        output = model(
            hidden_states=here.to(device()),
            timestep=level[start].to(device()),
            img_ids=_positions(),
            **encode(texts),
        ).sample
        return F.mse_loss(output.float(), target.to(device()))

    return loss


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    record(arguments.count)
