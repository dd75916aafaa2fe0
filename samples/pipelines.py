"""Functions for `--pipeline`: what the command line itself cannot say of a pipeline.

    ditaccel eval samples/models/shapes-flux --pipeline samples/pipelines.py:lora --out out

A function takes what it needs of `model` (as given on the command line), `device` and `dtype` (a
torch.dtype, or None where none was asked for), and returns the pipeline, ready to be called and not
accelerated, on its device; or a pair of it and arguments for every call. Its annotation names the
class where that is not the model's own: `ditaccel generate` checks rows before anything loads, and
every worker calls the function once. Results are kept apart by the function's name and its file.
"""

from __future__ import annotations

from typing import Any

import torch
from diffusers import FluxImg2ImgPipeline, FluxPipeline


def plain(model: str, device: str = "cpu", dtype: Any = None) -> FluxPipeline:
    """The model as it is."""
    return FluxPipeline.from_pretrained(model, torch_dtype=dtype or torch.float32).to(device)


def lora(model: str, device: str = "cpu") -> FluxPipeline:
    """With a LoRA whose weights are not 0."""
    from peft import LoraConfig

    pipe = plain(model, device)
    torch.manual_seed(0)
    pipe.transformer.add_adapter(LoraConfig(r=4, target_modules=["to_q"], init_lora_weights=False))
    return pipe


def offloaded(model: str) -> FluxPipeline:
    """The transformer's blocks come to the device when they run."""
    pipe = plain(model)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"),
        offload_device=torch.device("cpu"),
        offload_type="block_level",
        num_blocks_per_group=1,
    )
    return pipe


def compiled(model: str) -> FluxPipeline:
    """Repeated blocks compiled."""
    pipe = plain(model)
    pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
    return pipe


def rescheduled(model: str) -> FluxPipeline:
    """Another scheduler."""
    pipe = plain(model)
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=5.0)
    return pipe


def quantised(model: str) -> FluxPipeline:
    """Weights in 8 bits."""
    from torchao.quantization import Int8WeightOnlyConfig, quantize_

    pipe = plain(model)
    quantize_(pipe.transformer, Int8WeightOnlyConfig())
    return pipe


def image_to_image(model: str) -> tuple[FluxImg2ImgPipeline, dict[str, Any]]:
    """Another class of pipeline, and the argument that all of its calls need."""
    from PIL import Image

    picture = Image.new("RGB", (64, 64), (200, 30, 30))
    return FluxImg2ImgPipeline.from_pipe(plain(model)), {"image": picture, "strength": 0.9}
