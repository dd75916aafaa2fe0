"""Every transformer of the installed diffusers is of a family, or it is said why not."""

import re
from importlib.metadata import version

import pytest
from diffusers.models import transformers
from ditaccel.pipelines import adapters
from generated_docs import pipelines_of_diffusers
from tiny import offered
from torch import nn
from version_matrix import DIFFUSERS

UNET = "a part of UNets: these blocks never run on their own"
NO_FAMILY = {
    "DreamLiteTransformer2DModel": UNET,
    "DualTransformer2DModel": UNET,
    "TransformerTemporalModel": UNET,
    "Transformer2DModel": "a part of UNets and of PixArt's first form; as the denoiser of"
    " VQ-Diffusion it predicts classes of pixels, and no features that change smoothly",
    "UVit2DModel": "aMUSEd unmasks tokens that are drawn at random: nothing to forecast",
    "PriorTransformer": "makes one image embedding: a handful of tokens, no loop over latents",
    "T5FilmDecoder": "decodes notes of spectrograms, by a pipeline that diffusers deprecated",
    "RFD4ProteinaTransformer": "makes proteins: residues and pairs of them, no latents of pixels",
    "MiniMaxMusic3RVQDepthDecoder": "an autoregressive decoder of codes within a frame: no"
    " denoising loop",
}
OF_FAMILIES = {name for adapter in adapters().values() for name in adapter.transformers}


def in_diffusers():
    """Modules of diffusers' room of transformers, and what pipelines take as `transformer`."""
    found = {name: getattr(transformers, name) for name in dir(transformers)}
    own = {n for n, c in found.items() if isinstance(c, type) and issubclass(c, nn.Module)}
    taken = {name for name in pipelines_of_diffusers() if re.search("Transformer|Model$", name)}
    return own | taken


def test_every_transformer_has_a_family_or_a_reason():
    missing = in_diffusers() - OF_FAMILIES - set(NO_FAMILY)
    assert not missing, f"write a family for them, or say in NO_FAMILY why not: {sorted(missing)}"


def test_reasons_are_of_transformers_that_exist_and_have_no_family():
    assert not OF_FAMILIES & set(NO_FAMILY), "take them out of NO_FAMILY"
    assert all(NO_FAMILY.values())
    if version("diffusers") != DIFFUSERS[-1]:
        pytest.skip(f"other versions than {DIFFUSERS[-1]} lack some of them")
    assert set(NO_FAMILY) <= in_diffusers()


def test_the_newest_diffusers_has_all_families():
    absent = [name for name in adapters() if not offered(name)]
    if version("diffusers") != DIFFUSERS[-1]:
        pytest.skip(f"diffusers {version('diffusers')} has no {', '.join(absent) or 'other'}")
    assert not absent
