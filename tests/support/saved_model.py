"""A model folder as users have it, with a model that is made in no time."""

import json
import logging
from pathlib import Path
from typing import Any


def decoder_dit() -> Any:
    """`DiTPipeline` with two named classes, 8 × 8 pictures."""
    from tiny import tiny_dit

    pipe, _ = tiny_dit(layers=3)
    pipe.labels = {"a red circle": 0, "b": 1}
    return pipe


def save_dit(folder: Path) -> Path:
    """A saved tiny DiT with `sample.json` and a prompt file of two classes."""
    logging.getLogger("diffusers").setLevel(logging.ERROR)
    decoder_dit().save_pretrained(folder)
    index = json.loads((folder / "model_index.json").read_text())
    index["id2label"] = {"0": "a red circle", "1": "b"}
    (folder / "model_index.json").write_text(json.dumps(index))
    sheet = {
        "family": "dit",
        "task": "class-to-image",
        "call": {"guidance_scale": 3.0, "num_inference_steps": 6},
        "prompts": "prompts.txt",
    }
    (folder / "sample.json").write_text(json.dumps(sheet))
    (folder / "prompts.txt").write_text("# classes\na red circle\n\nb\n")
    return folder
