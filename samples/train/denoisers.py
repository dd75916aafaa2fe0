"""The three denoisers with their text encoders, and the losses that train them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from data import Scenes
from diffusers import (
    DDIMScheduler,
    DiTTransformer2DModel,
    FluxPipeline,
    FluxTransformer2DModel,
    WanTransformer3DModel,
)
from layout import Layout, hidden_states, latent_times
from loop import device
from pools import Pool, Trajectories, flux_levels
from text import (
    WIDTH,
    Binding,
    build_clip,
    build_t5,
    build_umt5,
    clip_tokenizer,
    t5_tokenizer,
    tokenize,
    wan_prompt_embeds,
)
from torch import Tensor, nn
from vae import IMAGE_CHANNELS, VIDEO_CHANNELS

NULL_CLASS = 1000
CLASSES = 24
LATENT = 16
DROP = 0.1
BINDING = 0.1
LAYOUT = 0.5


def _zero(*layers: nn.Module) -> None:
    for layer in layers:
        for parameter in layer.parameters():
            nn.init.zeros_(parameter)


def build_dit() -> nn.ModuleDict:
    transformer = DiTTransformer2DModel(
        num_attention_heads=3,
        attention_head_dim=32,
        in_channels=IMAGE_CHANNELS,
        out_channels=IMAGE_CHANNELS,
        num_layers=12,
        sample_size=LATENT,
        patch_size=2,
        num_embeds_ada_norm=NULL_CLASS,
    )
    # diffusers leaves the zero start of adaLN-Zero to the trainer.
    for block in transformer.transformer_blocks:
        _zero(block.norm1.linear)
        table = block.norm1.emb.class_embedder.embedding_table.weight
        nn.init.normal_(table, std=0.02)
        with torch.no_grad():
            table[CLASSES:NULL_CLASS] = 0  # never used; zeros pack well
    _zero(transformer.proj_out_1, transformer.proj_out_2)
    # Every block drops labels on its own in train mode; the loss drops them once for all.
    return nn.ModuleDict({"transformer": transformer}).eval()


def build_flux() -> nn.ModuleDict:
    transformer = FluxTransformer2DModel(
        in_channels=IMAGE_CHANNELS * 4,
        num_layers=3,
        num_single_layers=7,
        attention_head_dim=32,
        num_attention_heads=3,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 12, 12),
    )
    for block in transformer.transformer_blocks:
        _zero(block.norm1.linear, block.norm1_context.linear)
    for block in transformer.single_transformer_blocks:
        _zero(block.norm.linear)
    _zero(transformer.norm_out.linear, transformer.proj_out)
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": build_clip(len(clip_tokenizer())),
            "text_encoder_2": build_t5(len(t5_tokenizer())),
            "binding": Binding(t5_tokenizer()),
            "layout": Layout(transformer.inner_dim),
        }
    )


def build_wan() -> nn.ModuleDict:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=48,
        in_channels=VIDEO_CHANNELS,
        out_channels=VIDEO_CHANNELS,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=384,
        num_layers=10,
        rope_max_seq_len=64,
    )
    for block in transformer.blocks:
        nn.init.zeros_(block.scale_shift_table)
        _zero(block.attn2.to_out[0])
    nn.init.zeros_(transformer.scale_shift_table)
    _zero(transformer.condition_embedder.time_proj, transformer.proj_out)
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": build_umt5(len(t5_tokenizer())),
            "binding": Binding(t5_tokenizer()),
            "layout": Layout(96),
        }
    )


def _flow_times(n: int, generator: torch.Generator, shift: float) -> Tensor:
    """Noise levels in (0, 1): logit-normal, then shifted as the scheduler shifts them."""
    u = torch.sigmoid(torch.randn(n, generator=generator) * 1.2)
    return shift * u / (1 + (shift - 1) * u)


def _noised(
    latents: Tensor, generator: torch.Generator, shift: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Noised latents, noise levels (N,) and the velocity to predict."""
    time = _flow_times(len(latents), generator, shift).to(latents.device)
    noise = torch.randn(latents.shape, generator=generator).to(latents.device)
    level = time.view(-1, *[1] * (latents.ndim - 1))
    return torch.lerp(latents, noise, level), time, noise - latents


def told(texts: list[str]) -> Tensor:
    """Which captions say anything, (N,)."""
    return torch.tensor([bool(text) for text in texts])


def _auxiliary(
    model: nn.ModuleDict,
    embeds: Tensor,
    token_ids: Tensor,
    hidden: Tensor,
    scenes: Scenes,
    times: Tensor,
    texts: list[str],
) -> Tensor:
    """What is learnt beside denoising: which words belong together, and what lies where."""
    binding = model["binding"](embeds, token_ids)
    return BINDING * binding + LAYOUT * model["layout"](hidden, scenes, times, told(texts))


def dit_loss(pool: Pool, batch: int) -> Callable:
    """Noise prediction on the DDIM schedule, labels dropped to the null class."""
    alphas = DDIMScheduler().alphas_cumprod

    def loss(model: nn.ModuleDict, step: int, generator: torch.Generator) -> Tensor:
        latents, scenes = pool.batch(batch, generator)
        labels = scenes.shape[:, 0] * 6 + scenes.colour[:, 0]
        labels[torch.rand(batch, generator=generator) < DROP] = NULL_CLASS
        time = torch.randint(1000, (batch,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        keep = alphas[time].view(-1, 1, 1, 1)
        noised = keep.sqrt() * latents + (1 - keep).sqrt() * noise
        output = model["transformer"](
            noised.to(device()), time.to(device()), labels.to(device())
        ).sample
        return F.mse_loss(output.float(), noise.to(device()))

    return loss


def flux_loss(pool: Pool, batch: int, shift: float = 1.5) -> Callable:
    """Flow matching on packed latents, captions dropped to the empty prompt."""
    clip, t5 = clip_tokenizer(), t5_tokenizer()
    ids = FluxPipeline._prepare_latent_image_ids(
        1, LATENT // 2, LATENT // 2, device(), torch.float32
    )

    def loss(model: nn.ModuleDict, step: int, generator: torch.Generator) -> Tensor:
        latents, scenes = pool.batch(batch, generator)
        texts = pool.texts(scenes, generator, DROP)
        packed = FluxPipeline._pack_latents(latents, batch, IMAGE_CHANNELS, LATENT, LATENT)
        noised, time, target = _noised(packed.to(device()), generator, shift)
        pooled = model["text_encoder"](tokenize(clip, texts)[0].to(device())).pooler_output
        token_ids = tokenize(t5, texts)[0].to(device())
        embeds = model["text_encoder_2"](token_ids).last_hidden_state
        with hidden_states(model["transformer"]) as hidden:
            output = model["transformer"](
                hidden_states=noised,
                timestep=time,
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(embeds.shape[1], 3, device=device()),
                img_ids=ids,
            ).sample
        auxiliary = _auxiliary(model, embeds, token_ids, hidden[0], scenes, torch.zeros(1), texts)
        return F.mse_loss(output.float(), target) + auxiliary

    return loss


def build_few(trajectories: type[Trajectories] = Trajectories) -> FluxTransformer2DModel:
    """The student of a FLUX sample: its teacher's transformer, to begin with."""
    return FluxTransformer2DModel.from_pretrained(trajectories.TEACHER / "transformer").train()


def few_loss(trajectories: Trajectories, batch: int, two_share: float = 0.3) -> Callable:
    """Trajectory distillation: the velocity that leads from a node to the next in one Euler step.

    Guidance is in the teacher's way, so that the student needs one call per step. A share of the
    examples leads over two nodes, from the nodes of a loop of half as many steps: one model serves
    both. Text encoders and autoencoder stay the teacher's.
    """
    pipe, steps = trajectories.teacher(), trajectories.STEPS
    level = flux_levels(steps, pipe.scheduler.config.shift)
    del pipe.transformer

    def loss(model: FluxTransformer2DModel, step: int, generator: torch.Generator) -> Tensor:
        if step % 50 == 0:
            trajectories.look()
        nodes, texts = trajectories.batch(batch, generator)
        start = torch.randint(steps, (batch,), generator=generator)
        two = torch.rand(batch, generator=generator) < two_share
        start = torch.where(two, start // 2 * 2, start)
        end, rows = start + 1 + two, torch.arange(batch)
        here, there = nodes[rows, start], nodes[rows, end]
        target = (there - here) / (level[end] - level[start])[:, None, None]
        output = model(
            hidden_states=here.to(device()),
            timestep=level[start].to(device()),
            img_ids=trajectories.positions(),
            **trajectories.conditions(pipe, texts),
        ).sample
        return F.mse_loss(output.float(), target.to(device()))

    return loss


@contextmanager
def frames_at(transformer: nn.Module, frames: Tensor, total: int) -> Iterator[None]:
    """Give the latent frames that are handed over the rotary positions `frames` of `total`."""
    rope, positions = transformer.rope, transformer.rope.forward

    def chosen(hidden_states: Tensor) -> tuple[Tensor, ...]:
        shape = list(hidden_states.shape)
        shape[2] = total
        whole = positions(hidden_states.new_empty(()).expand(shape))
        return tuple(x.unflatten(1, (total, -1))[:, frames].flatten(1, 2) for x in whole)

    rope.forward = chosen
    try:
        yield
    finally:
        del rope.forward


def wan_loss(
    images: Pool, clips: Callable[[], Pool], plan: Callable[[int], tuple[int, int]]
) -> Callable:
    """Flow matching on pictures, on whole clips, and on some frames of clips.

    Motion shows in the distance of frames, so one latent frame out of each of some equal parts of a
    clip, at its own rotary position, teaches it for a fraction of the cost.

    Args:
        images: pool of single first frames.
        clips: opens the pool of clips when it is first needed.
        plan: batch size and number of latent frames of a step: 1 is a picture, fewer than the
            clips have are drawn from them.
    """
    t5 = t5_tokenizer()
    opened: list[Pool] = []

    def loss(model: nn.ModuleDict, step: int, generator: torch.Generator) -> Tensor:
        batch, length = plan(step)
        if length > 1 and not opened:
            opened.append(clips())
        pool = opened[0] if length > 1 else images
        latents, scenes = pool.batch(batch, generator)
        total = latents.shape[2]
        part = total // length
        frames = torch.arange(length) * part
        if length > 1:
            frames += torch.randint(part, (length,), generator=generator)
        latents = latents[:, :, frames]
        texts = pool.texts(scenes, generator, DROP)
        # Frames repeat each other, so clips keep their plan under more noise than single frames.
        noised, time, target = _noised(latents.to(device()), generator, 3.0 if length == 1 else 5.0)
        token_ids, mask = (x.to(device()) for x in tokenize(t5, texts))
        embeds = wan_prompt_embeds(model["text_encoder"], token_ids, mask)
        positions = frames_at(model["transformer"], frames.to(device()), total)
        with positions, hidden_states(model["transformer"]) as hidden:
            output = model["transformer"](noised, time * 1000, embeds).sample
        times = latent_times(frames)
        auxiliary = _auxiliary(model, embeds, token_ids, hidden[0], scenes, times, texts)
        return F.mse_loss(output.float(), target) + auxiliary

    return loss
