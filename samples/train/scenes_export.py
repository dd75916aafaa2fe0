"""Write a scenes model as a diffusers folder, a sheet of pictures, and its card.

python samples/train/scenes_export.py scenes-flux                 # into samples/models
python samples/train/scenes_export.py scenes-flux --folder DIR    # to look at, or to measure
python samples/train/scenes_export.py scenes-flux --card          # from the folder as it is written
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from loop import RUNS, averaged
from PIL import Image
from scenes.export import BASE, CALLS, JUDGE, trained, write
from scenes.words import held_out_prompts

SAMPLES = Path(__file__).resolve().parents[1]


def pictures(
    pipe: Any, name: str, prompts: list[str], steps: int | None
) -> list[list[Image.Image]]:
    """Frames of one sample per prompt, prompt i with seed i; one frame is a picture."""
    call = {**CALLS[name], "output_type": "pil"}
    if steps:
        call["num_inference_steps"] = steps
    found = []
    for i, prompt in enumerate(prompts):
        generator = torch.Generator().manual_seed(i)
        output = pipe(prompt, negative_prompt="", generator=generator, **call)
        found.append(output.frames[0] if hasattr(output, "frames") else output.images)
    return found


def sheet(samples: list[list[Image.Image]]) -> Image.Image:
    """All pictures, eight to a row; of a clip every sixth frame, one clip to a row."""
    shown = [frame for frames in samples for frame in frames[::6]]
    size = shown[0].width
    page = Image.new("RGB", (size * min(len(shown), 8), size * -(-len(shown) // 8)))
    for i, picture in enumerate(shown):
        page.paste(picture, (i % 8 * size, i // 8 * size))
    return page


def _judge(folder: Path) -> Path:
    """Write the network that judges, with its card."""
    from scenes.judge import build_judge, judge_card

    net = build_judge()
    averaged(JUDGE, net).save_pretrained(folder)
    steps = json.loads((RUNS / JUDGE / "log.json").read_text())["step"]
    (folder / "README.md").write_text(judge_card(net, steps))
    return folder


def _card(name: str, folder: Path, count: int) -> Path:
    """Generate from a model's folder, judge, and write its card."""
    import numpy as np
    from diffusers import DiffusionPipeline
    from scenes.card import write_card

    pipe = DiffusionPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    prompts = held_out_prompts(128, seed=7)[:count]
    samples = pictures(pipe, name, prompts, None)
    first = np.stack([np.asarray(frames[0]) for frames in samples])
    images = torch.from_numpy(first).permute(0, 3, 1, 2).float() / 255
    shown = samples[: 4 if len(samples[0]) > 1 else 24]
    return write_card(pipe, name, folder, images, sheet(shown), prompts)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("name", choices=[*CALLS, JUDGE])
    parser.add_argument("--folder", type=Path, help="in place of samples/models/NAME")
    parser.add_argument("--sheet", type=Path, help="PNG to write")
    parser.add_argument("--n", type=int, default=16, help="prompts on the sheet or the card")
    parser.add_argument("--steps", type=int, help="scheduler steps of the sheet")
    parser.add_argument("--card", action="store_true", help="write the card of what is exported")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    name = arguments.name
    folder = arguments.folder.resolve() if arguments.folder else SAMPLES / "models" / name
    if arguments.card:
        print(_card(name, folder, arguments.n))
        return
    if name == JUDGE:
        print(_judge(folder))
        return
    pipe = trained(name)
    pipe.set_progress_bar_config(disable=True)
    if arguments.sheet:
        prompts = held_out_prompts(128, seed=7)[: arguments.n]
        sheet(pictures(pipe, name, prompts, arguments.steps)).save(arguments.sheet)
    prompts = SAMPLES / "prompts" / f"{BASE.get(name, name)}.txt"
    print(write(pipe, name, folder, folder / "prompts.txt" if arguments.folder else prompts))


if __name__ == "__main__":
    main()
