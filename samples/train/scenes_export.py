"""Write scenes-flux or scenes-wan as a diffusers folder, and a sheet of pictures.

python samples/train/scenes_export.py scenes-flux                 # into samples/models
python samples/train/scenes_export.py scenes-flux --folder DIR    # to look at, or to measure
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scenes.export import CALLS, trained, write
from scenes.words import held_out_prompts

SAMPLES = Path(__file__).resolve().parents[1]


def sheet(pipe: Any, name: str, count: int, steps: int) -> Image.Image:
    """Pictures of the first held-out prompts, eight to a row; of a clip every sixth frame."""
    call = {**CALLS[name], "num_inference_steps": steps, "output_type": "pil"}
    pictures: list[Image.Image] = []
    for i, prompt in enumerate(held_out_prompts(128, seed=7)[:count]):
        generator = torch.Generator().manual_seed(i)
        output = pipe(prompt, negative_prompt="", generator=generator, **call)
        pictures += output.frames[0][::6] if hasattr(output, "frames") else output.images
    size = call["width"]
    page = Image.new("RGB", (size * min(len(pictures), 8), size * -(-len(pictures) // 8)))
    for i, picture in enumerate(pictures):
        page.paste(picture, (i % 8 * size, i // 8 * size))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=list(CALLS))
    parser.add_argument("--folder", type=Path, help="in place of samples/models/NAME")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--n", type=int, default=16, help="prompts on the sheet")
    parser.add_argument("--steps", type=int, default=50, help="scheduler steps of the sheet")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.name
    pipe = trained(name)
    pipe.set_progress_bar_config(disable=True)
    if arguments.sheet:
        sheet(pipe, name, arguments.n, arguments.steps).save(arguments.sheet)
    if arguments.folder:
        folder = arguments.folder.resolve()
        print(write(pipe, name, folder, folder / "prompts.txt"))
    else:
        print(write(pipe, name, SAMPLES / "models" / name, SAMPLES / "prompts" / f"{name}.txt"))


if __name__ == "__main__":
    main()
