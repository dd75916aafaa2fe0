"""Tiny models with a decoder, as the evaluation needs pictures."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from saved_model import decoder_dit, save_dit


def decoder_wan() -> tuple[Any, dict[str, Any]]:
    """`WanPipeline` with a tiny VAE, clips of 5 frames of 16 × 16."""
    from diffusers import AutoencoderKLWan
    from tiny import tiny_wan

    pipe, call = tiny_wan()
    torch.manual_seed(0)
    vae = AutoencoderKLWan(
        base_dim=3,
        z_dim=4,
        dim_mult=[1, 1, 1, 1],
        num_res_blocks=1,
        temperal_downsample=[False, True, True],
        latents_mean=[0.0] * 4,
        latents_std=[1.0] * 4,
    )
    pipe.register_modules(vae=vae.eval())
    return pipe, call | {"height": 16, "width": 16, "output_type": "np"}


def decoder_flux() -> tuple[Any, dict[str, Any]]:
    """`FluxPipeline` with a tiny VAE and guidance in two calls, 8 × 8 pictures."""
    from diffusers import AutoencoderKL
    from tiny import tiny_flux

    pipe, call = tiny_flux()
    torch.manual_seed(0)
    vae = AutoencoderKL(
        block_out_channels=(4,),
        latent_channels=4,
        norm_num_groups=1,
        use_quant_conv=False,
        use_post_quant_conv=False,
        shift_factor=0.06,
        scaling_factor=1.5,
    )
    pipe.register_modules(vae=vae.eval())
    return pipe, call | {"height": 16, "width": 16, "output_type": "np"}


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A saved tiny DiT (see `saved_model`)."""
    return save_dit(tmp_path_factory.mktemp("model") / "tiny-dit")


@pytest.fixture(scope="session")
def fresh() -> dict[str, Callable[[], tuple[Any, dict[str, Any]]]]:
    """Family → builder of a pipeline of its own, with the weights that `pipelines` has."""
    return {"wan": decoder_wan, "flux": decoder_flux}


@pytest.fixture(scope="session")
def pipelines() -> dict[str, tuple[Any, dict[str, Any]]]:
    """Family → (pipeline with a decoder, call arguments)."""
    return {
        "dit": (decoder_dit(), {"guidance_scale": 3.0}),
        "wan": decoder_wan(),
        "flux": decoder_flux(),
    }
