"""Judge exported samples, write their model cards: `python samples/train/card.py [MODEL ...]`."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib
import torch
from ditaccel.eval.shapes.features import FeatureNet, prompt_accuracy
from export import MODELS
from judge import CLASSES, expected, generate, load, sheet
from PIL import Image
from smoothness import record

matplotlib.use("Agg")
import matplotlib.pyplot as plt

SCRIPT = "python samples/train/train.py"
DATA = {
    "dit": "One coloured shape on a smooth background, 64x64; class = shape and colour (24).",
    "flux": "One or two coloured shapes (two in 40 %, late in training in 75 %) on a smooth "
    "background, 64x64, with captions such as `a small red circle and a blue square on a dark "
    "background`.",
    "flux-few": "The pictures that shapes-flux makes with its guidance, from captions that are not "
    "held out (two objects in 60 %).",
    "wan": "One or two coloured shapes (two in 40 %, late in training in 75 %) that move left, "
    "right, up or down on a smooth background, 64x64, 63 frames, with captions such as `a red "
    "circle moving right and a blue square moving up`.",
}
TASKS = (
    "Beside it, two tasks whose heads are thrown away: colour words tell the other words of their "
    "object (first from captions alone), and hidden states tell which object lies where."
)
METHOD = {
    "dit": "Noise prediction on DDIM's linear schedule; 10 % of the labels dropped to class 1000.",
    "flux": "Flow matching, logit-normal noise levels shifted as the scheduler shifts them; 10 % "
    "of the captions dropped. T5 and CLIP (randomly initialised, tiny) learn jointly. " + TASKS,
    "flux-few": "Trajectory distillation of shapes-flux: the velocity that leads from a node of an "
    "8-step loop to the next one in one Euler step, guidance included (one transformer call per "
    "step); 30 % of the examples lead over two nodes, so that 4 steps work as well. The teacher's "
    "trajectories are 24 steps of second order (`samples/train/pools.py flux-few 2048`); text "
    "encoders and autoencoder are the teacher's.",
    "wan": "Flow matching, logit-normal noise levels with shift 3 (images) and 5 (clips); 10 % "
    "of the captions dropped. UMT5 (randomly initialised, tiny) learns jointly. First "
    "pictures, then eight of the 32 latent frames at their own rotary positions (512 tokens), some "
    "pictures and some whole clips (2048 tokens) among them. "
    + TASKS
    + " The last 42 minutes let the learning rate fall (`--anneal`).",
}


LIMITS = {
    "dit": "About one shape in six is not what was asked for, and pale smears next to objects come "
    "from latents the decoder does not know. Whether the background is light or dark is not said "
    "by the class: it is decided in the first steps, and a cache that disturbs them flips it (PSNR "
    "near 5 dB on that picture).",
    "flux": "With two objects one shape in six is not what was asked for, and now and then a third "
    "object appears. Prompts that name no background leave it to the first steps, which a cache "
    "may flip. Features are a little less smooth than they should be (linear / reuse above 0.6).",
    "flux-few": "What shapes-flux gets wrong, this model gets wrong too. It was made for 4 and 8 "
    "steps and no guidance: `true_cfg_scale` above 1 makes no sense.",
    "wan": "One object is right and moves as asked. With two, about one shape in three is not the "
    "one asked for, objects that start side by side may melt together, and now and then a colour "
    "runs over to the other object or a third object appears.",
}


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(exist_ok=True)
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def _plot_loss(log: dict[str, Any], path: Path) -> None:
    figure, axis = plt.subplots(figsize=(5, 3))
    axis.plot([row[1] / 60 for row in log["loss"]], [row[2] for row in log["loss"]], lw=1)
    axis.set(xlabel="training time (minutes)", ylabel="loss (running mean)", yscale="log")
    axis.grid(alpha=0.3)
    _save(figure, path)


def _plot_smoothness(result: dict[str, Any], path: Path) -> None:
    figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.2))
    left.plot(range(1, len(result["change"]) + 1), result["change"], lw=1)
    left.set(xlabel="step", ylabel="relative L1", title="change of the residual, step to step")
    for order, name in enumerate(("reuse", "linear", "quadratic")):
        steps = result["last"]["per_step"][order]
        mean = result["last"]["mean"][order]
        right.plot(list(steps), list(steps.values()), lw=1, label=f"{name} (mean {mean:.3f})")
    right.set(xlabel="step", ylabel="relative L1", title="forecast error, full step every 3")
    right.legend(fontsize=8)
    for axis in (left, right):
        axis.set_ylim(bottom=0)
        axis.grid(alpha=0.3)
    _save(figure, path)


def _size(folder: Path) -> float:
    return sum(p.stat().st_size for p in folder.rglob("*.safetensors")) / 1e6


def _percent(values: dict[str, float]) -> str:
    return " | ".join(f"{100 * values[k]:.1f} %" if k in values else "-" for k in COLUMNS)


COLUMNS = ("colour", "shape", "direction")
_CARD = """# shapes-{name}

A `{kind}` small enough to generate on a CPU, trained to give caches something real
to be judged on. Loads with the stock class; `sample.json` holds the default call.

- **Data**: {data} Synthetic,
  `samples/train/data.py`.
- **Training**: {method}
- **Size**: {sizes} parameters; {megabytes:.1f} MB of safetensors (float16; text encoders
  float32).
- **Trained for** {minutes:.0f} minutes on at most two CPU threads ({steps} steps):
  `{script} {name} --minutes {minutes:.0f}`

## What the judge sees

{subjects}, default call, judged by `shapes-features`:

| | pictures or clips | colour | shape | direction |
|---|---|---|---|---|
{table}

![samples](card/samples.png)
{caption}
## Limits

{limits}

## Features along the steps

Last block, one full step every 3, relative L1 over all steps between and the next one, float32,
default call: reuse {mean[0]:.4f}, linear {mean[1]:.4f}, quadratic {mean[2]:.4f}; **linear / reuse =
{ratio:.2f}**.

![smoothness](card/smoothness.png)

## Loss

![loss](card/loss.png)
"""


def _scores(
    name: str, images: Any, prompts: list[str], pipe: Any
) -> dict[str, tuple[int, dict[str, float]]]:
    """Which samples -> how many they are, and what the judge sees in them."""
    net = FeatureNet.from_pretrained(MODELS / "shapes-features")
    wanted = expected(name, prompts, pipe)
    rows = {"all": list(range(len(prompts)))}
    if name != "dit":
        rows["one object"] = [i for i, w in enumerate(wanted) if len(w) == 1]
        rows["two objects"] = [i for i, w in enumerate(wanted) if len(w) == 2]
    return {
        label: (len(index), prompt_accuracy(net, images[index], [wanted[i] for i in index]))
        for label, index in rows.items()
    }


def _sizes(pipe: Any) -> str:
    """The parts of a pipeline, and their millions of parameters."""
    parts = {
        part: sum(p.numel() for p in getattr(pipe, part).parameters()) / 1e6
        for part in ("transformer", "vae", "text_encoder", "text_encoder_2")
        if getattr(pipe, part, None) is not None
    }
    return ", ".join(f"{part} {size:.2f} M" for part, size in parts.items())


def _caption(name: str, prompts: list[str]) -> str:
    """What stands below the picture of samples."""
    if name.startswith("flux"):
        return "\nThe first 32 of the held-out prompts, row by row.\n"
    shown = "\n".join(f"{i + 1}. {prompt}" for i, prompt in enumerate(prompts[:8]))
    return f"\nRows, from the top:\n\n{shown}\n" if name == "wan" else ""


def write_card(name: str, count: int) -> dict[str, Any]:
    """Generate, judge, plot, and write `README.md` of one model."""
    folder = MODELS / f"shapes-{name}"
    pipe, call, prompts = load(name)
    prompts = prompts[:count]
    images = generate(name, pipe, call, prompts, seed=0, batch=8 if name == "wan" else 60)
    scores = _scores(name, images, prompts, pipe)
    pictures = sheet(images[:8] if name == "wan" else images[:32], scale=1 if name == "wan" else 2)
    (folder / "card").mkdir(exist_ok=True)
    pictures.quantize(128).save(folder / "card" / "samples.png", optimize=True)
    smooth = record(name, pipe, call, prompts[: 2 if name == "wan" else 8])
    _plot_smoothness(smooth, folder / "card" / "smoothness.png")
    log = json.loads((folder / "card" / "training.json").read_text())
    _plot_loss(log, folder / "card" / "loss.png")
    mean = smooth["last"]["mean"]
    table = "\n".join(
        f"| {label} | {number} | {_percent(value)} |" for label, (number, value) in scores.items()
    )
    card = _CARD.format(
        name=name,
        kind=type(pipe).__name__,
        data=DATA[name],
        method=METHOD[name],
        sizes=_sizes(pipe),
        megabytes=_size(folder),
        minutes=log["minutes"],
        steps=log["step"],
        script=SCRIPT,
        subjects="Class names" if name == "dit" else "Prompts never seen in training",
        table=table,
        caption=_caption(name, prompts),
        limits=LIMITS[name],
        mean=mean,
        ratio=mean[1] / mean[0],
    )
    (folder / "README.md").write_text(card)
    by_label = {label: value for label, (_, value) in scores.items()}
    result = {"model": name, "scores": by_label, "ratio": mean[1] / mean[0], "mean": mean}
    print(json.dumps(result))
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("models", nargs="*", default=list(CLASSES))
    parser.add_argument("--n", type=int, default=120)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    for name in arguments.models:
        write_card(name, arguments.n)


if __name__ == "__main__":
    main()
