"""CLIPScore: how well a sample shows its prompt (Hessel et al. 2021), from a local CLIP folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ditaccel.errors import UsageError
from ditaccel.io import given

from .base import Better, Metric, Need, Shown, Unit, register
from .frames import to_frames

HOW = (
    "a folder with a CLIP model, its tokenizer and its image processor as transformers saves them "
    "(openai/clip-vit-base-patch16, openai/clip-vit-large-patch14 or laion/CLIP-ViT-g-14-laion2B-"
    "s12B-b42K from the Hub; figures of two of them cannot be compared)"
)
_PARTS = ("config.json", "preprocessor_config.json")
# Frames that pass through the model at a time.
_BATCH = 16


class ClipScore:
    """Cosine between the embeddings of frames and of the prompt, times 100.

    Args:
        folder: of the model; only safetensors are read.

    Raises:
        UsageError: the folder is missing, damaged, or not CLIP's.
    """

    def __init__(self, folder: str | Path) -> None:
        from transformers import CLIPImageProcessor, CLIPModel, CLIPTokenizer

        folder = given.path(folder)
        if missing := [name for name in _PARTS if not (folder / name).is_file()]:
            raise UsageError(f"{folder} holds no {missing[0]}: CLIPScore needs {HOW}")
        local: dict[str, Any] = {"local_files_only": True}
        try:
            self._model = CLIPModel.from_pretrained(folder, use_safetensors=True, **local).eval()
            self._tokenizer = CLIPTokenizer.from_pretrained(folder, **local)
            self._pictures = CLIPImageProcessor.from_pretrained(folder, **local)
        except Exception as error:
            line = str(error).strip().split("\n")[0][:200]
            raise UsageError(f"{folder} cannot be read ({line}): CLIPScore needs {HOW}") from error

    @torch.inference_mode()
    def score(self, reference: Any, candidate: Any, prompt: str) -> float:
        """Mean CLIPScore over frames, at most 100; below 0 counts as 0.

        Args:
            reference: of no influence.
            candidate: frames (F, H, W, 3), uint8 or float in [0, 1].
            prompt: cut off at the model's longest text, 77 tokens.

        Raises:
            UsageError: frames of a wrong shape, or a value that is not finite.
        """
        del reference
        frames = (to_frames(candidate, "candidate") * 255).round().byte()
        longest = self._model.config.text_config.max_position_embeddings
        tokens = self._tokenizer(
            [prompt], truncation=True, max_length=longest, padding=True, return_tensors="pt"
        )
        made = []
        for part in frames.split(_BATCH):
            pixels = self._pictures(images=list(part.numpy()), return_tensors="pt")
            found = self._model(**tokens, **pixels)
            made.append(found.image_embeds @ found.text_embeds[0])
        return float(100 * torch.cat(made).double().clamp(min=0).mean())


register(
    Metric(
        key="clip_score",
        title="CLIPScore",
        unit=Unit.NUMBER,
        better=Better.HIGHER,
        about="cosine of picture and prompt in CLIP's space, times 100, at least 0; compare with "
        "dense's row",
        load=lambda folder: ClipScore(folder).score,
        needs=(Need.PICTURES, Need.PROMPT, Need.WEIGHTS),
        package="transformers",
        how=HOW,
        format=lambda value: f"{value:.2f}",
        shown=Shown.FILE,
    )
)
