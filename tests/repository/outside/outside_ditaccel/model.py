"""The pipeline of the family, for `--pipeline outside_ditaccel.model:make`."""

from diffusers import FluxPipeline, FluxTransformer2DModel


class OutsideTransformer2DModel(FluxTransformer2DModel):
    """A class that ditaccel has never heard of."""


def renamed(pipe):
    """A Flux pipeline with the transformer's class exchanged."""
    ours = OutsideTransformer2DModel.from_config(dict(pipe.transformer.config))
    ours.load_state_dict(pipe.transformer.state_dict())
    pipe.transformer = ours.eval()
    return pipe


def make(model):
    """The pipeline of a folder."""
    return renamed(FluxPipeline.from_pretrained(model))
