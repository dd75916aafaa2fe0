"""What tiny pipelines of several families share: sizes, images, VAEs and encoders."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from PIL import Image
from torch.nn import functional as F

from tiny.builder import Tiny, embeds_source, pipeline_of

# Images of 11 x 11 tokens, and of 5 x 3
SQUARE = {"height": 176, "width": 176}
SMALL = {"height": 80, "width": 48}
# Frames of 7 x 9 tokens
VIDEO = {"height": 112, "width": 144, "num_inference_steps": 7, "output_type": "latent"}
# Wan's blocks at 4 x 6 x 6 tokens, and at 3 x 4 x 7
WAN_CALL = {
    "height": 96,
    "width": 96,
    "num_frames": 13,
    "num_inference_steps": 8,
    "guidance_scale": 4.0,
    "output_type": "latent",
}
WAN_RESIZED = {"height": 64, "width": 112, "num_frames": 9}
WAN = {
    "patch_size": (1, 2, 2),
    "num_attention_heads": 2,
    "attention_head_dim": 12,
    "in_channels": 4,
    "out_channels": 4,
    "text_dim": 16,
    "freq_dim": 32,
    "ffn_dim": 32,
    "num_layers": 4,
    "rope_max_seq_len": 32,
}


def flow_scheduler() -> Any:
    """Flow matching as Wan has it."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(shift=3.0)


def unipc_scheduler() -> Any:
    """The multistep solver that Wan 2.2 and its relatives come with."""
    from diffusers import UniPCMultistepScheduler

    return UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0
    )


def wan_vae() -> Any:
    """Wan's VAE, which other families use too."""
    from diffusers import AutoencoderKLWan

    return AutoencoderKLWan(
        base_dim=4,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )


def cogvideox_vae() -> Any:
    """CogVideoX's VAE, which its relatives use too."""
    from diffusers import AutoencoderKLCogVideoX

    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * 4,
        up_block_types=("CogVideoXUpBlock3D",) * 4,
        block_out_channels=(4, 4, 4, 4),
        latent_channels=4,
        layers_per_block=1,
        norm_num_groups=2,
        temporal_compression_ratio=4,
    )


def flux_vae(channels: int = 4) -> Any:
    """An image VAE that does not scale."""
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=(8,), norm_num_groups=4, latent_channels=channels, shift_factor=0.0
    )


def clip_encoder() -> dict[str, Any]:
    """The image encoder of Wan's image-to-video pipelines, and its processor."""
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModel

    config = CLIPVisionConfig(
        hidden_size=20,
        intermediate_size=20,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=8,
    )
    processor = CLIPImageProcessor(
        size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}
    )
    return {"image_encoder": CLIPVisionModel(config), "image_processor": processor}


def two_prompts() -> dict[str, Any]:
    """Embeddings of a prompt and of a negative one; seeds the weights."""
    embeds = embeds_source()
    return {"prompt_embeds": embeds(1, 6, 16), "negative_prompt_embeds": embeds(1, 6, 16)}


def like_flux(transformer: str, **more: Any) -> Any:
    """A transformer with the blocks of Flux."""
    import diffusers

    return getattr(diffusers, transformer)(
        in_channels=64,
        num_layers=2,
        num_single_layers=2,
        attention_head_dim=16,
        num_attention_heads=2,
        joint_attention_dim=16,
        axes_dims_rope=(4, 4, 8),
        **more,
    )


def ramp(size: int = 22) -> Image.Image:
    """A square image of a colour ramp."""
    pixels = torch.arange(size * size * 3).reshape(size, size, 3) * 5 % 256
    return Image.fromarray(pixels.to(torch.uint8).numpy())


def noise_image() -> Image.Image:
    """A square image of noise, 96 pixels wide."""
    pixels = torch.rand(24, 24, 3, generator=torch.Generator().manual_seed(3))
    return Image.fromarray((pixels * 255).byte().numpy()).resize((96, 96))


def noise_frames(count: int, width: int = 144, height: int = 112) -> list[Image.Image]:
    """Frames of noise."""
    pixels = torch.rand(count, 16, 16, 3, generator=torch.Generator().manual_seed(3)) * 255
    return [Image.fromarray(frame.byte().numpy()).resize((width, height)) for frame in pixels]


def with_image(pipe: Any, call: dict[str, Any], cls: Any, **parts: Any) -> Tiny:
    """The image-to-video pipeline `cls` with the parts of another pipeline, and the other's call.

    Args:
        pipe: whose parts it gets.
        call: arguments of a generation, to which an image is added.
        cls: of the pipeline.
        **parts: parts that take the place of those of `pipe`.
    """
    (image,) = noise_frames(1, call["width"], call["height"])
    return pipeline_of(cls, **{**pipe.components, **parts}), {**call, "image": image}


def words_as_numbers(texts: list[str] | str, **options: Any) -> Any:
    """In place of a tokenizer: a number for each word, rows of equal length with their mask."""
    from transformers import BatchEncoding

    rows = [[3 + sum(map(ord, word)) % 60 for word in text.split()] for text in _listed(texts)]
    length = max(map(len, rows))
    ids = torch.tensor([row + [0] * (length - len(row)) for row in rows])
    mask = torch.arange(length) < torch.tensor([[len(row)] for row in rows])
    return BatchEncoding({"input_ids": ids, "attention_mask": mask.long()})


def _listed(texts: list[str] | str) -> list[str]:
    return [texts] if isinstance(texts, str) else texts


class Stub(torch.nn.Module):
    """In place of a part that a tiny pipeline has no use for, but asks about.

    Args:
        **config: what its config tells.
    """

    device, dtype = torch.device("cpu"), torch.float32

    def __init__(self, **config: Any) -> None:
        from diffusers.configuration_utils import FrozenDict

        super().__init__()
        self.config = FrozenDict(config)


class WordEmbeddings(Stub):
    """In place of a text encoder: an embedding for each number."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.embedding = torch.nn.Embedding(64, channels)

    def get_input_embeddings(self) -> torch.nn.Module:
        """The embeddings of words, without context."""
        return self.embedding

    def forward(self, input_ids: torch.Tensor, **options: Any) -> Any:
        """Embeddings of numbers."""
        return SimpleNamespace(last_hidden_state=self.embedding(input_ids))


class Averages(Stub):
    """In place of a VAE of four channels: the mean of pixels side by side, of every fourth frame.

    Args:
        factor: pixels in a row and in a column of each latent.
    """

    def __init__(self, factor: int) -> None:
        super().__init__(
            scaling_factor=1.0,
            scale_factor_spatial=factor,
            scale_factor_temporal=4,
            latents_mean=[0.0] * 4,
            latents_std=[1.0] * 4,
        )
        self.spatial_compression_ratio, self.temporal_compression_ratio = factor, 4

    def encode(self, video: torch.Tensor, return_dict: bool = True) -> Any:
        """Latents `(B, 4, 1 + F, H, W)`, of which the fourth channel is the mean of the others."""
        means = F.avg_pool3d(video[:, :, ::4], (1, *[self.spatial_compression_ratio] * 2))
        latents = torch.cat([means, means.mean(1, keepdim=True)], 1)
        given = SimpleNamespace(mode=lambda: latents, sample=lambda generator=None: latents)
        return SimpleNamespace(latent_dist=given) if return_dict else (given,)

    def decode(self, latents: torch.Tensor, return_dict: bool = True) -> Any:
        """Pixels `(B, 3, 1 + 4 F, H, W)`."""
        factor = self.spatial_compression_ratio
        frames = latents[:, :3].repeat_interleave(4, 2)[:, :, 3:]
        return (frames.repeat_interleave(factor, 3).repeat_interleave(factor, 4),)
