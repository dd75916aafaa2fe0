"""One moving picture: a clip dense and with the preset `balanced`, from the same noise.

python samples/side_by_side.py "a red circle moving right" --out side-by-side.gif

Below each clip are its seconds (of one CPU thread, or of the GPU) and how near it came to the dense
one, on raw frames.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import WanPipeline
from PIL import Image, ImageDraw, ImageFont

import ditaccel

FOLDER = Path(__file__).parent / "models" / "shapes-wan"
SCALE, GAP, FOOT = 3, 12, 44
SKIP = 2  # every second frame is shown: the file is for a page


def timed(pipe: Any, prompt: str, call: dict[str, Any]) -> tuple[np.ndarray, float]:
    """A clip `(frames, height, width, 3)` in 0..1, and its seconds.

    On a CPU they are seconds of the process, which other work does not change.
    """
    gpu = pipe.device.type == "cuda"
    clock = time.perf_counter if gpu else time.process_time
    start = clock()
    noise = torch.Generator().manual_seed(0)
    frames = pipe(prompt, generator=noise, output_type="np", **call).frames[0]
    if gpu:
        torch.cuda.synchronize()
    return frames, clock() - start


def psnr(clip: np.ndarray, dense: np.ndarray) -> float:
    """Peak signal to noise in dB."""
    return float(-10 * np.log10(np.mean((clip.astype(np.float64) - dense) ** 2)))


def picture(clips: list[np.ndarray], captions: list[str]) -> list[Image.Image]:
    """Frames with the clips next to each other, each above its caption of two lines."""
    height, width = clips[0].shape[1] * SCALE, clips[0].shape[2] * SCALE
    font = ImageFont.load_default(size=14)
    frames = []
    for index in range(0, len(clips[0]), SKIP):
        frame = Image.new("RGB", (len(clips) * (width + GAP) + GAP, height + FOOT + GAP), "white")
        draw = ImageDraw.Draw(frame)
        for place, (clip, caption) in enumerate(zip(clips, captions, strict=True)):
            left = GAP + place * (width + GAP)
            image = Image.fromarray((clip[index] * 255).round().astype(np.uint8))
            frame.paste(image.resize((width, height), Image.Resampling.NEAREST), (left, GAP))
            draw.multiline_text((left, height + GAP + 4), caption, "black", font)
        frames.append(frame)
    # one palette for all frames: what does not move then compresses
    few = [np.asarray(frames[at]) for at in (0, len(frames) // 2, -1)]
    palette = Image.fromarray(np.concatenate(few)).quantize(96)
    return [frame.quantize(palette=palette, dither=Image.Dither.NONE) for frame in frames]


def main() -> None:
    """Make both clips, and write the picture."""
    parser = argparse.ArgumentParser()
    parser.add_argument("prompt", nargs="?", default="a red circle moving right")
    parser.add_argument("--out", type=Path, default=Path("out/side-by-side.gif"))
    parser.add_argument("--steps", type=int, help="(default: those of the sample)")
    args = parser.parse_args()
    if not torch.cuda.is_available():
        torch.set_num_threads(1)
    pipe = WanPipeline.from_pretrained(FOLDER).to("cuda" if torch.cuda.is_available() else "cpu")
    pipe.set_progress_bar_config(disable=True)
    call = json.loads((FOLDER / "sample.json").read_text())["call"]
    call["num_inference_steps"] = args.steps or call["num_inference_steps"]
    timed(pipe, args.prompt, {**call, "num_inference_steps": 3})  # the first calls are slower
    dense, seconds = timed(pipe, args.prompt, call)
    captions = [f"dense: {seconds:.1f} s\n{call['num_inference_steps']} steps"]
    with ditaccel.accelerated(pipe, "balanced"):
        clip, seconds = timed(pipe, args.prompt, call)
        share = ditaccel.report(pipe).computed_share
    captions.append(f"balanced: {seconds:.1f} s\n{share:.0%} computed, {psnr(clip, dense):.0f} dB")
    frames = picture([dense, clip], captions)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    options = {"duration": SKIP * 1000 // 8, "loop": 0, "optimize": True}
    frames[0].save(args.out, save_all=True, append_images=frames[1:], **options)
    print(*(caption.replace("\n", ", ") for caption in captions), sep="\n")
    print(f"{args.out}: {args.out.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
