"""scenes-flux: 1,024 tokens per picture, learnt at half the resolution first."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import FluxPipeline, FluxTransformer2DModel
from layout import hidden_states
from loop import device
from text import WIDTH, build_clip, build_t5, clip_tokenizer, t5_tokenizer, tokenize
from torch import Tensor, nn

from scenes.pools import SIDE, Pool
from scenes.pools import texts as prompts_of
from scenes.seen import Seen
from scenes.vae import CHANNELS, SHRINK
from scenes.words import TOKENS, WORDS
from scenes.world import SIZE

# Sampling follows this shift; training spends its noise levels the same way. A picture of half the
# side has a quarter of the pixels to average over, which is worth half the shift.
SHIFT = 3.0
DROP = 0.1
SEEN = 0.1  # weight of the auxiliary task


def tokenizers() -> tuple:
    """The CLIP and the T5 tokenizer."""
    return clip_tokenizer(WORDS, TOKENS), t5_tokenizer(WORDS)


def build_flux() -> nn.ModuleDict:
    # Two wide heads cost half of what four narrow ones do: the softmax is what takes time here.
    transformer = FluxTransformer2DModel(
        in_channels=CHANNELS * 4,
        num_layers=2,
        num_single_layers=7,
        attention_head_dim=64,
        num_attention_heads=2,
        joint_attention_dim=WIDTH,
        pooled_projection_dim=WIDTH,
        guidance_embeds=False,
        axes_dims_rope=(8, 28, 28),
    )
    zeroed = [transformer.norm_out.linear, transformer.proj_out]
    for block in transformer.transformer_blocks:
        zeroed += [block.norm1.linear, block.norm1_context.linear]
    zeroed += [block.norm.linear for block in transformer.single_transformer_blocks]
    for layer in zeroed:
        nn.init.zeros_(layer.weight)
        nn.init.zeros_(layer.bias)
    clip, t5 = tokenizers()
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": build_clip(len(clip), TOKENS),
            "text_encoder_2": build_t5(len(t5)),
            "seen": Seen(transformer.inner_dim),
        }
    )


def image_ids(small: bool) -> Tensor:
    """Positions (tokens, 3): those of a small picture lie where what they show lies in a whole one.

    So what is learnt about the places of things carries over.
    """
    side = SIDE // 4 if small else SIDE // 2
    ids = FluxPipeline._prepare_latent_image_ids(1, side, side, device(), torch.float32)
    if small:
        ids[:, 1:] = ids[:, 1:] * 2 + 0.5
    return ids


def curriculum(step: int) -> tuple[int, bool]:
    """Batch size and whether the pictures are small, at a step."""
    every = 8 if step < 8000 else 2
    whole = step % every == every - 1 if step < 16_000 else step % 4 != 0
    return (6, False) if whole else (32, True)


def flux_loss(pool: Pool, plan: Callable[[int], tuple[int, bool]] = curriculum) -> Callable:
    """Flow matching on packed latents, captions dropped to the empty prompt."""
    clip, t5 = tokenizers()

    def loss(model: nn.ModuleDict, step: int, generator: torch.Generator) -> Tensor:
        batch, small = plan(step)
        latents, scenes = pool.batch(batch, small, generator)
        texts = prompts_of(scenes, generator, DROP)
        side = latents.shape[-1]
        packed = FluxPipeline._pack_latents(latents, batch, CHANNELS, side, side)
        shift = SHIFT / 2 if small else SHIFT
        level = torch.sigmoid(torch.randn(batch, generator=generator) * 1.2)
        level = shift * level / (1 + (shift - 1) * level)
        noise = torch.randn(packed.shape, generator=generator)
        noised = torch.lerp(packed, noise, level[:, None, None]).to(device())
        pooled = model["text_encoder"](tokenize(clip, texts, TOKENS)[0].to(device())).pooler_output
        token_ids = tokenize(t5, texts, TOKENS)[0].to(device())
        embeds = model["text_encoder_2"](token_ids).last_hidden_state
        with hidden_states(model["transformer"]) as hidden:
            output = model["transformer"](
                hidden_states=noised,
                timestep=level.to(device()),
                pooled_projections=pooled,
                encoder_hidden_states=embeds,
                txt_ids=torch.zeros(TOKENS, 3, device=device()),
                img_ids=image_ids(small),
            ).sample
        size = SIZE // 2 if small else SIZE
        seen = model["seen"](hidden[0], scenes, 2 * SHRINK, size)
        return F.mse_loss(output.float(), (noise - packed).to(device())) + SEEN * seen

    return loss
