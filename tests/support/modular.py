"""Modular pipelines as users have them, tiny: from a prompt to pictures, and one in a folder."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from checkout import ROOT
from diffusers.modular_pipelines.modular_pipeline import (
    ModularPipelineBlocks,
    SequentialPipelineBlocks,
)
from diffusers.modular_pipelines.modular_pipeline_utils import InputParam, OutputParam
from tiny import FAMILIES
from tiny.builder import modular_of
from tiny.parts import Stub


class Words(ModularPipelineBlocks):
    """In place of a text encoder: embeddings drawn with a prompt's letters.

    Args:
        guided: whether there is a negative prompt, too.
    """

    def __init__(self, guided: bool) -> None:
        self.guided = guided
        super().__init__()

    @property
    def inputs(self) -> list[Any]:
        """A prompt."""
        return [InputParam("prompt", required=True), *[InputParam("negative_prompt")] * self.guided]

    @property
    def intermediate_outputs(self) -> list[Any]:
        """What the blocks behind want of it."""
        own = "negative_prompt_embeds" if self.guided else "text_token_tags"
        return [OutputParam("prompt_embeds"), OutputParam(own)]

    def __call__(self, components: Any, state: Any) -> Any:
        """Draw the embeddings."""
        found = self.get_block_state(state)
        found.prompt_embeds = _drawn(found.prompt)
        if self.guided:
            found.negative_prompt_embeds = _drawn(found.negative_prompt or "")
        else:
            found.text_token_tags = torch.ones(6, dtype=torch.long)
        self.set_block_state(state, found)
        return components, state


def _drawn(prompt: str | list[str]) -> torch.Tensor:
    texts = [prompt] if isinstance(prompt, str) else prompt
    sources = [torch.Generator().manual_seed(sum(map(ord, text))) for text in texts]
    return torch.cat([torch.randn(1, 6, 16, generator=source) for source in sources])


class VideoDecoder(Stub):
    """In place of a VAE of 24 channels: three of them as colours, each latent 2 x 2 pixels."""

    def __init__(self) -> None:
        means, deviations = [0.0] * 24, [1.0] * 24
        super().__init__(
            latents_mean=means, latents_std=deviations, latent_channels=24, clip_length=17
        )
        self.spatial_compression_ratio, self.tokens_chunk_size = 16, 5

    def encode(self, video: torch.Tensor) -> Any:
        """Must not be called: from a prompt to pictures, nothing is encoded."""
        raise AssertionError("a pipeline that starts from a prompt has encoded something")

    def decode(self, latents: torch.Tensor, return_dict: bool = False) -> Any:
        """Pixels `(B, 3, F, 2 H, 2 W)`."""
        return (latents[:, :3].repeat_interleave(2, 3).repeat_interleave(2, 4),)


def flux3() -> tuple[Any, dict[str, Any]]:
    """Flux 3 from a prompt to pictures of 22 x 22 pixels, and the arguments of a call."""
    from diffusers import AutoencoderKLFlux2
    from diffusers.modular_pipelines.flux3.decoders import Flux3DecodeStep
    from diffusers.modular_pipelines.flux3.modular_blocks_flux3 import Flux3CoreDenoiseStep

    blocks = {
        "text": Words(guided=True),
        "denoise": Flux3CoreDenoiseStep(),
        "decode": Flux3DecodeStep(),
    }
    core, _ = FAMILIES["flux3"]()
    parts = {name: getattr(core, name) for name in ("transformer", "scheduler", "guider")}
    vae = AutoencoderKLFlux2(
        down_block_types=("DownEncoderBlock2D",),
        up_block_types=("UpDecoderBlock2D",),
        block_out_channels=(8,),
        norm_num_groups=4,
        latent_channels=4,
    )
    return _made("flux3", blocks, vae=vae.eval(), **parts), {"height": 22, "width": 22}


def minimax_h3() -> tuple[Any, dict[str, Any]]:
    """MiniMax-H3 from a prompt to 37 frames of 8 x 8 pixels, and the arguments of a call."""
    from diffusers.modular_pipelines.minimax_h3.decoders import MiniMaxH3VideoDecodeStep
    from diffusers.modular_pipelines.minimax_h3.modular_blocks_minimax_h3 import (
        MiniMaxH3CoreDenoiseStep,
    )

    blocks = {
        "text": Words(guided=False),
        "denoise": MiniMaxH3CoreDenoiseStep(),
        "decode": MiniMaxH3VideoDecodeStep(),
    }
    core, _ = FAMILIES["minimax_h3"]()
    parts = {name: getattr(core, name) for name in ("transformer", "scheduler", "audio_scheduler")}
    call = {"height": 64, "width": 64, "num_frames": 124}
    return _made("minimax-h3", blocks, vae=VideoDecoder(), **parts), call


def _made(model: str, blocks: dict[str, Any], **parts: Any) -> Any:
    made = SequentialPipelineBlocks.from_blocks_dict(blocks)
    type(made).model_name = model  # (the class of this one object)
    return modular_of(made, **parts)


PIPELINES = {"flux3": flux3, "minimax_h3": minimax_h3}
FOLDER_CALL = {"height": 32, "width": 32, "max_sequence_length": 24, "num_inference_steps": 6}


def save_modular(folder: Path) -> Path:
    """Save FLUX.1's modular pipeline: a tiny transformer, the text encoders of our sample."""
    from diffusers import FluxTransformer2DModel, ModularPipeline

    logging.getLogger("diffusers").setLevel(logging.ERROR)
    pipe = ModularPipeline.from_pretrained(str(ROOT / "samples/models/shapes-flux"))
    pipe.load_components()
    config = {**pipe.transformer.config, "num_layers": 1, "num_single_layers": 1}
    torch.manual_seed(0)
    pipe.update_components(transformer=FluxTransformer2DModel.from_config(config))
    pipe.save_pretrained(str(folder), overwrite_modular_index=True)
    return folder
