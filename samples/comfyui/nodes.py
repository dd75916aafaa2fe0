"""Two nodes: one that accelerates a model, and one that shows what was skipped."""

from __future__ import annotations

from typing import Any

from .denoiser import Accelerated

WRAPPER = "model_function_wrapper"


class DitaccelAccelerate:
    """A model whose sampler calls are forecast where they can be."""

    CATEGORY = "advanced/ditaccel"
    DESCRIPTION = "Skips calls of a diffusion transformer whose output can be forecast."
    RETURN_TYPES = ("MODEL",)
    FUNCTION = "accelerate"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, as ComfyUI reads them."""
        sampler = "euler corrects what forecasts leave in the latents; choose other for any other"
        more = "a config file of ditaccel tune, or a spec; replaces the quality"
        return {
            "required": {
                "model": ("MODEL",),
                "quality": (["balanced", "safe", "fast"],),
                "sampler": (["euler", "other"], {"tooltip": sampler}),
            },
            "optional": {"config": ("STRING", {"default": "", "tooltip": more})},
        }

    def accelerate(self, model: Any, quality: str, sampler: str, config: str = "") -> tuple[Any]:
        """A clone of the model with the cache on it; the given model stays as it is."""
        accelerated = model.clone()
        before = accelerated.model_options.get(WRAPPER)
        if isinstance(before, Accelerated):
            before = before.before  # two such nodes in a row: the last one counts
        wrapper = Accelerated(config.strip() or quality, sampler == "euler", before)
        accelerated.set_model_unet_function_wrapper(wrapper)
        return (accelerated,)


class DitaccelReport:
    """What was skipped while these latents were sampled; the latents pass through."""

    CATEGORY = "advanced/ditaccel"
    RETURN_TYPES = ("LATENT", "STRING")
    RETURN_NAMES = ("latent", "report")
    FUNCTION = "report"

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """The inputs, as ComfyUI reads them."""
        return {"required": {"model": ("MODEL",), "latent": ("LATENT",)}}

    def report(self, model: Any, latent: Any) -> tuple[Any, str]:
        """The report of an accelerated model, whose cache is freed."""
        wrapper = model.model_options.get(WRAPPER)
        if not isinstance(wrapper, Accelerated):
            return latent, "ditaccel: this model is not accelerated"
        text = wrapper.report()
        wrapper.close()
        return latent, text


NODE_CLASS_MAPPINGS = {
    "DitaccelAccelerate": DitaccelAccelerate,
    "DitaccelReport": DitaccelReport,
}
NODE_DISPLAY_NAME_MAPPINGS = {
    "DitaccelAccelerate": "Accelerate (ditaccel)",
    "DitaccelReport": "Report (ditaccel)",
}
