"""Cards of the scenes models: what `ditaccel bench trajectory` measured, beside real models."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from textwrap import fill
from typing import Any

import torch
from ditaccel.eval.bench.trajectory import PUBLISHED
from ditaccel.eval.shapes.scene_judge import found_in, wanted
from ditaccel.eval.shapes.scene_net import SceneNet
from PIL import Image

from scenes.export import BASE, CALLS, HALVES
from scenes.world import SIZE

MEASURE = "ditaccel bench trajectory samples/models/{name}"

KINDS = {
    "scenes-flux": "A `FluxPipeline` that draws 128 x 128 pictures of up to five textured things, "
    "1,024 image tokens",
    "scenes-flux-turbo": "scenes-flux in 4 or 8 steps, without guidance: a `FluxPipeline` whose "
    "transformer is distilled from that of scenes-flux; everything else is a link to its parts",
    "scenes-wan": "A `WanPipeline` with UniPC, as Wan has it, that makes clips of 47 frames of "
    "textured things moving before a moving background: 6,144 video tokens",
    "scenes-wan22": "scenes-wan with two experts, as Wan 2.2 has them: `transformer` makes the "
    "steps down to 0.875 of the noise, `transformer_2` the others; everything else is a link to "
    "the parts of scenes-wan",
}
TRAINING = {
    "scenes-flux": "Flow matching, logit-normal noise levels with shift 3; 10 % of the captions "
    "dropped; CLIP and T5 (randomly initialised, tiny) learn jointly. First pictures of half the "
    "side, then whole ones. An auxiliary task, thrown away afterwards, asks every token what it "
    "shows.",
    "scenes-flux-turbo": "Trajectory distillation: the velocity that leads from a node of a loop "
    "of 8 steps to the next in one Euler step, guidance included; 30 % of the examples lead over "
    "two nodes, so that 4 steps work as well. The teacher's ways are 24 steps of second order.",
    "scenes-wan": "Flow matching, logit-normal noise levels with shift 3 (1.5 for single frames); "
    "10 % of the captions dropped; UMT5 (randomly initialised, tiny) learns jointly. First single "
    "frames, then six of the 24 latent frames at their own rotary positions, and some whole clips.",
    "scenes-wan22": "Both experts start from the weights of scenes-wan; each is trained on its own "
    "noise levels alone, spread as the sampler spreads its steps.",
}

_CARD = """# {name}

{kind}

- **Data**: synthetic, `samples/train/scenes`: wood, brick, stone, fur, leaves, weave, marble and
  more, lit things with shadows; a prompt names one or two of them and some of what is around them.
{training}
{size}
- **Trained for** {minutes:.0f} minutes on one CPU thread ({steps} steps).

![samples](card/samples.png)

{rows}:

{prompts}

## How hard it is

`{command}`, {count} prompts, {loop} steps{random}:

| | {name} | target | real models |
|---|---|---|---|
{statistics}

{tiles}
## What the judge sees

{accuracy}

![loss](card/loss.png)
"""
_LOADS = "Loads with the stock class, offline; `sample.json` holds the default call."
_FORM = "safetensors (float16; text encoders float32) of its own."
_RANDOM = ". **These weights look random: the figures mean nothing**"


def _filled(text: str) -> str:
    return fill(text, 99, subsequent_indent="  " if text.startswith("- ") else "")


def _mean(values: list[float]) -> float:
    return statistics.mean(values)


def _three(values: dict[str, Any], form: str) -> str:
    return " / ".join("-" if v is None else format(v, form) for v in values.values())


def _decibels(values: list[float]) -> str:
    return f"{_mean(values):.1f} dB (worst {min(values):.1f})"


def figures(found: dict[str, Any], *, picture: bool) -> list[tuple[str, str, str, str]]:
    """Rows of the card's table: what it is, this model's figure, the target, real models.

    Args:
        found: what `bench trajectory --out` wrote.
        picture: whether the targets for pictures hold.
    """
    newest = {part: pair[0] if pair else None for part, pair in found["weights"].items()}
    ratio = {"middle": found["magcache"]["middle"]}
    taylor = found["taylorseer"]
    rows = [
        (
            "change from step to step (start / middle / end)",
            _three(found["change"], ".3f"),
            ">= .10 in the middle",
            PUBLISHED["change from step to step"],
        ),
        (
            "newest weight of the best one-step predictor",
            _three(newest, ".2f"),
            "<= 1.45",
            PUBLISHED["newest weight"],
        ),
        (
            "MagCache ratio, mean distance from 1, middle",
            _three(ratio, ".4f"),
            "-",
            PUBLISHED["MagCache"],
        ),
        (
            "half the steps",
            _decibels(found["half_steps"]),
            "<= 26 dB" if picture else "-",
            PUBLISHED["half the steps"],
        ),
        (
            f"TaylorSeer at {taylor['speed']:.2f}x",
            _decibels(taylor["psnr"]),
            "<= 28 dB" if picture else "-",
            PUBLISHED["TaylorSeer"],
        ),
    ]
    if floor := found.get("noise_floor"):
        rows.append((f"{floor['dtype']} alone", _decibels(floor["psnr"]), "-", "-"))
    if heads := found.get("attention"):
        densities = [head["density"] for head in heads]
        rows.append(
            (
                f"tiles for {found['mass']:.0%} of the attention (median of the heads)",
                f"{statistics.median(densities):.0%} ({min(densities):.0%}-{max(densities):.0%})",
                "-" if picture else "<= 40 %",
                "-",
            )
        )
        overlaps = [head["overlap"] for head in heads if head["overlap"] is not None]
        kept = f"{statistics.median(overlaps):.0%}" if overlaps else "-"
        rows.append(("of those tiles, still right a step later", kept, "-", "-"))
    return rows


def accuracies(net: SceneNet, pictures: torch.Tensor, prompts: list[str]) -> dict[str, float]:
    """Mean shares of what prompts ask for that pictures show.

    Args:
        net: the judge.
        pictures: (N, 3, H, W) in [0, 1].
        prompts: one per picture.
    """
    sums: dict[str, list[float]] = {}
    for labels, prompt in zip(net.see(pictures)[1], prompts, strict=True):
        if asked := wanted(net, prompt):
            for name, value in found_in(labels, asked).items():
                sums.setdefault(name, []).append(value)
    return {name: _mean(values) for name, values in sums.items()}


def _judged(folder: Path, pictures: torch.Tensor, prompts: list[str]) -> str:
    """The table of accuracies, real pictures beside the model's; a line where there is no judge."""
    from scenes.words import captions
    from scenes.world import render, sample_scenes

    judge = folder.parent / "scenes-features"
    if not judge.is_dir():
        return "The judge (`scenes-features`) is not trained yet."
    net = SceneNet.from_pretrained(judge)
    generator = torch.Generator().manual_seed(99)
    scenes = sample_scenes(len(prompts), generator)
    texts = captions(scenes, generator)
    drawn = render(scenes)[:, 0]
    rows = {
        "this model, held-out prompts": accuracies(net, pictures, prompts),
        "real pictures, their own prompts": accuracies(net, drawn, texts),
        "real pictures, others' prompts": accuracies(net, drawn, texts[1:] + texts[:1]),
    }
    names = ("thing", "material", "colour", "background")
    lines = [f"| {len(prompts)} pictures or first frames | {' | '.join(names)} |", "|---" * 5 + "|"]
    for label, shares in rows.items():
        cells = [f"{100 * shares[n]:.0f} %" if n in shares else "-" for n in names]
        lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _logs(folder: Path, name: str) -> dict[str, dict[str, Any]]:
    halves = HALVES if name == "scenes-wan22" else ("",)
    files = {half: folder / "card" / f"training{half and '-' + half}.json" for half in halves}
    return {half: json.loads(file.read_text()) for half, file in files.items() if file.exists()}


def _plot_loss(logs: dict[str, dict[str, Any]], path: Path) -> None:
    from matplotlib import pyplot as plt

    figure, axis = plt.subplots(figsize=(5, 3))
    for half, log in logs.items():
        axis.plot([r[1] / 60 for r in log["loss"]], [r[2] for r in log["loss"]], lw=1, label=half)
    axis.set(xlabel="training time (minutes)", ylabel="loss (running mean)", yscale="log")
    axis.grid(alpha=0.3)
    if len(logs) > 1:
        axis.legend()
    figure.tight_layout()
    figure.savefig(path, dpi=80)
    plt.close(figure)
    Image.open(path).convert("RGB").quantize(64).save(path, optimize=True)


def _sizes(pipe: Any, name: str) -> str:
    own = ("transformer", "transformer_2")
    parts = own if name in BASE else (*own, "vae", "text_encoder", "text_encoder_2")
    found = {p: getattr(pipe, p, None) for p in parts}
    return ", ".join(
        f"{part} {sum(p.numel() for p in module.parameters()) / 1e6:.2f} M parameters"
        for part, module in found.items()
        if module is not None
    )


def megabytes(folder: Path) -> float:
    """Weights of a folder's own, links to another folder's left out."""
    files = [p for p in folder.glob("*/*.safetensors") if not p.parent.is_symlink()]
    return sum(p.stat().st_size for p in files) / 1e6


def write_card(
    pipe: Any,
    name: str,
    folder: Path,
    pictures: torch.Tensor,
    page: Image.Image,
    prompts: list[str],
) -> Path:
    """Write `README.md` of one model, with its pictures.

    Args:
        pipe: the pipeline of the folder.
        name: of the model.
        folder: of the model, with `card/trajectory.json` of `ditaccel bench trajectory`.
        pictures: (N, 3, H, W) in [0, 1], of a clip the first frame, one per prompt.
        page: the sheet to show.
        prompts: that the pictures were made from.

    Raises:
        FileNotFoundError: the trajectory was not measured.
    """
    measured = folder / "card" / "trajectory.json"
    if not measured.exists():
        raise FileNotFoundError(f"run `{MEASURE.format(name=name)} --out {measured}` first")
    found = json.loads(measured.read_text())
    page.quantize(192).save(folder / "card" / "samples.png", optimize=True)
    logs = _logs(folder, name)
    _plot_loss(logs, folder / "card" / "loss.png")
    video = "num_frames" in CALLS[name]
    shown = prompts[: page.height // SIZE] if video else prompts
    rows = figures(found, picture=not video)
    text = _CARD.format(
        name=name,
        kind=_filled(f"{KINDS[name]}. {_LOADS}"),
        training=_filled(f"- **Training**: {TRAINING[name]}"),
        size=_filled(f"- **Size**: {_sizes(pipe, name)}; {megabytes(folder):.1f} MB of {_FORM}"),
        minutes=sum(log["minutes"] for log in logs.values()),
        steps=" + ".join(str(log["step"]) for log in logs.values()),
        rows="Rows, from the top" if video else "Row by row",
        prompts="\n".join(f"{i + 1}. {prompt}" for i, prompt in enumerate(shown)),
        command=MEASURE.format(name=name),
        count=found["prompts"],
        loop=found["steps"],
        random=_RANDOM if found["random"] else "",
        statistics="\n".join(f"| {' | '.join(row)} |" for row in rows),
        tiles="Tiles are 128 queries by 64 keys.\n" if found.get("attention") else "",
        accuracy=_judged(folder, pictures, prompts),
    )
    (folder / "README.md").write_text(text)
    return folder / "README.md"
