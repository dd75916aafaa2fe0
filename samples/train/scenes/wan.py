"""scenes-wan: clips of 6,144 tokens, whose attention outweighs everything else."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from denoisers import frames_at
from diffusers import WanTransformer3DModel
from layout import hidden_states, latent_times
from loop import device
from text import WIDTH, build_umt5, t5_tokenizer, tokenize, wan_prompt_embeds
from torch import Tensor, nn

from scenes.pools import Clips
from scenes.pools import texts as prompts_of
from scenes.seen import Seen
from scenes.video import CHANNELS, SHRINK
from scenes.words import TOKENS, WORDS
from scenes.world import SIZE

SHIFT = 3.0  # of the UniPC scheduler that the pipeline ships with
DROP = 0.1
SEEN = 0.1


def build_wan() -> nn.ModuleDict:
    transformer = WanTransformer3DModel(
        patch_size=(1, 2, 2),
        num_attention_heads=2,
        attention_head_dim=64,
        in_channels=CHANNELS,
        out_channels=CHANNELS,
        text_dim=WIDTH,
        freq_dim=128,
        ffn_dim=384,
        num_layers=8,
        rope_max_seq_len=64,
    )
    zeroed: list[nn.Parameter] = [transformer.scale_shift_table]
    for layer in (transformer.condition_embedder.time_proj, transformer.proj_out):
        zeroed += list(layer.parameters())
    for block in transformer.blocks:
        zeroed += [block.scale_shift_table, *block.attn2.to_out[0].parameters()]
    for parameter in zeroed:
        nn.init.zeros_(parameter)
    return nn.ModuleDict(
        {
            "transformer": transformer,
            "text_encoder": build_umt5(len(t5_tokenizer(WORDS))),
            "seen": Seen(128),
        }
    )


def curriculum(step: int) -> tuple[int, int]:
    """Batch size and latent frames at a step: single frames first, whole clips seldom.

    Weights and rotary positions are shared by all lengths; a whole clip costs as much as 150 single
    frames, since attention grows with the square.
    """
    if step < 6000 or step % 3 == 0:
        return 32, 1
    return (1, 24) if step % 24 == 1 else (4, 6)


def noise_levels(n: int, generator: torch.Generator, length: int) -> Tensor:
    """Sigmas (n,) for clips of so many latent frames: logit-normal, shifted as the sampler's are.

    Frames repeat each other, so clips keep their plan under more noise than single frames.
    """
    shift = SHIFT / 2 if length == 1 else SHIFT
    level = torch.sigmoid(torch.randn(n, generator=generator) * 1.2)
    return shift * level / (1 + (shift - 1) * level)


def wan_loss(
    images: Clips,
    clips: Callable[[], Clips],
    plan: Callable[[int], tuple[int, int]] = curriculum,
    levels: Callable[[int, torch.Generator, int], Tensor] = noise_levels,
) -> Callable:
    """Flow matching on single frames, on some frames of clips, and on whole clips.

    Args:
        images: pool of first frames.
        clips: opens the pool of clips when it is first needed.
        plan: batch size and latent frames of a step: 1 is a picture, fewer than the clips have are
            drawn from them, one out of each equal part, at their own rotary positions.
        levels: draws the noise levels of so many clips of so many latent frames.

    The auxiliary task is learnt where the model has heads for it.
    """
    t5 = t5_tokenizer(WORDS)
    opened: list[Clips] = []

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
        texts = prompts_of(scenes, generator, DROP)
        level = levels(batch, generator, length)
        noise = torch.randn(latents.shape, generator=generator)
        noised = torch.lerp(latents, noise, level[:, None, None, None, None]).to(device())
        token_ids, mask = (x.to(device()) for x in tokenize(t5, texts, TOKENS))
        embeds = wan_prompt_embeds(model["text_encoder"], token_ids, mask)
        positions = frames_at(model["transformer"], frames.to(device()), total)
        with positions, hidden_states(model["transformer"]) as hidden:
            output = model["transformer"](noised, level.to(device()) * 1000, embeds).sample
        error = F.mse_loss(output.float(), (noise - latents).to(device()))
        if "seen" not in model:
            return error
        return error + SEEN * model["seen"](
            hidden[0], scenes, 2 * SHRINK, SIZE, latent_times(frames)
        )

    return loss
