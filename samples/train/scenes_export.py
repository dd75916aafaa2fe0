"""Write scenes-flux as a diffusers folder, and a sheet of pictures.

python samples/train/scenes_export.py                  # into samples/models/scenes-flux
python samples/train/scenes_export.py --folder DIR     # to look at, or to measure, before
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from scenes.export import CALL, write
from scenes.words import held_out_prompts

SAMPLES = Path(__file__).resolve().parents[1]


def sheet(folder: Path, count: int, steps: int) -> Image.Image:
    """The pictures of the first `count` held-out prompts, eight to a row, from a saved model."""
    from diffusers import FluxPipeline

    pipe = FluxPipeline.from_pretrained(folder, torch_dtype=torch.float32)
    pipe.set_progress_bar_config(disable=True)
    call: dict[str, Any] = {**CALL, "num_inference_steps": steps}
    size = CALL["width"]
    page = Image.new("RGB", (int(size) * min(count, 8), int(size) * -(-count // 8)))
    for i, prompt in enumerate(held_out_prompts(128, seed=7)[:count]):
        generator = torch.Generator().manual_seed(i)
        picture = pipe(prompt, negative_prompt="", generator=generator, **call).images[0]
        page.paste(picture, (i % 8 * int(size), i // 8 * int(size)))
    return page


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--folder", type=Path, default=SAMPLES / "models" / "scenes-flux")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--n", type=int, default=16, help="pictures on the sheet")
    parser.add_argument("--steps", type=int, default=50, help="scheduler steps of the sheet")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = arguments.folder.resolve()
    shipped = folder.is_relative_to(SAMPLES)
    prompts = SAMPLES / "prompts" / "scenes-flux.txt" if shipped else folder / "prompts.txt"
    print(write(folder, prompts))
    if arguments.sheet:
        sheet(folder, arguments.n, arguments.steps).save(arguments.sheet)


if __name__ == "__main__":
    main()
