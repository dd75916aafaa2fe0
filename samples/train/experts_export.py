"""shapes-wan22 as a diffusers folder with its card: `python samples/train/experts_export.py`.

Text encoder, tokenizer and autoencoder are those of shapes-wan, by links into its folder.
"""

from __future__ import annotations

import argparse
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from card import _percent, _save, _scores
from diffusers import UniPCMultistepScheduler, WanPipeline
from experts import BOUNDARY, SHIFT, build_expert, expert_loss
from export import CALLS, MODELS, save
from judge import generate, sheet
from loop import RUNS, averaged
from matplotlib import pyplot as plt
from pools import Pool
from smoothness import Recorder, _relative

NAME, SHARED = "shapes-wan22", ("text_encoder", "tokenizer", "vae")
HALVES = ("high", "low")
CALL = {**CALLS["wan"], "num_inference_steps": 40, "guidance_scale_2": 3.0}
_CARD = """# shapes-wan22

A `WanPipeline` with two experts, as Wan 2.2 has them: `transformer` makes the steps down to
{boundary} of the noise, `transformer_2` the others (`boundary_ratio`); the scheduler is Wan's own
(UniPC, flow shift {shift:g}), and each expert has its own guidance scale. Loads with the stock
class; `sample.json` holds the default call. `text_encoder`, `tokenizer` and `vae` are links to
those of [shapes-wan](../shapes-wan).

- **Data**: the clips of shapes-wan.
- **Training**: both experts start from the weights of shapes-wan. Each is trained on its own noise
  levels alone, spread as the sampler spreads its steps; text encoder and autoencoder stay as they
  are.
- **Size**: 2 x {size:.2f} M parameters; {megabytes:.1f} MB of safetensors (float16) of its own.
- **Trained for** {steps} steps and {minutes:.0f} minutes on one CPU thread:

```bash
python samples/train/revive.py wan; python samples/train/pools.py wan 256
python samples/train/train.py wan22-high --steps {high} --anneal
python samples/train/train.py wan22-low --steps {low} --anneal
python samples/train/experts_export.py
```

## The two differ

Flow-matching loss on {clips} clips of the pool, whole, with the same noise:

| | high noise | low noise |
|---|---|---|
{losses}

Their outputs on the same input differ by {apart_high:.1%} of the output at high noise, and by
{apart_low:.1%} at low noise (relative L1). In a generation the residual of the blocks changes by
{jump:.3f} at the switch, and by {usual:.3f} in the steps around it.

## What the judge sees

Prompts never seen in training, default call, judged by `shapes-features`:

| | clips | colour | shape | direction |
|---|---|---|---|---|
{table}

![samples](card/samples.png)

Rows, from the top:

{prompts}

## Limits

Those of shapes-wan: one object is right and moves as asked; with two, shapes may be swapped or melt
together.

## Loss

![loss](card/loss.png)
"""


def pipeline() -> WanPipeline:
    """The two experts as they are trained, in float32."""
    base = MODELS / "shapes-wan"
    experts = [averaged(f"wan22-{half}", build_expert())["transformer"] for half in HALVES]
    scheduler = UniPCMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=SHIFT
    )
    return WanPipeline.from_pretrained(
        base,
        scheduler=scheduler,
        transformer=experts[0],
        transformer_2=experts[1],
        boundary_ratio=BOUNDARY,
    )


def write(pipe: WanPipeline, folder: Path) -> None:
    """Write the experts in float16, the scheduler, the index, and links for what is shared."""
    for old in folder.iterdir() if folder.exists() else ():
        if old.is_symlink():
            old.unlink()
        elif old.is_dir() and old.name != "card":
            shutil.rmtree(old)
    for part in (pipe.transformer, pipe.transformer_2):
        part.to(torch.float16)
    save(pipe, folder)
    for part in SHARED:
        shutil.rmtree(folder / part)
        (folder / part).symlink_to(Path("..") / "shapes-wan" / part)
    sample = json.loads((MODELS / "shapes-wan" / "sample.json").read_text())
    (folder / "sample.json").write_text(json.dumps({**sample, "call": CALL}, indent=2) + "\n")
    (folder / "card").mkdir(exist_ok=True)
    for half in HALVES:
        shutil.copy(RUNS / f"wan22-{half}" / "log.json", folder / "card" / f"training-{half}.json")


@torch.no_grad()
def _losses(clips: int) -> tuple[dict[str, list[float]], list[float]]:
    """Loss of each expert and of shapes-wan on both halves, and how far the experts are apart."""
    from denoisers import build_wan

    pool = Pool("wan")
    models = {half: averaged(f"wan22-{half}", build_expert()) for half in HALVES}
    models["shapes-wan"] = averaged("wan", build_wan())
    found: dict[str, list[float]] = {name: [] for name in models}
    apart = []
    for half in HALVES:
        outputs: dict[str, list[torch.Tensor]] = {name: [] for name in models}
        sums = dict.fromkeys(models, 0.0)
        for name, model in models.items():
            hook = model["transformer"].register_forward_hook(
                lambda _, args, output, kept=outputs[name]: kept.append(output.sample)
            )
            generator, loss = (
                torch.Generator().manual_seed(77),
                expert_loss(pool, high=half == "high"),
            )
            for _ in range(clips // 2):
                sums[name] += float(loss(model, 2, generator)) / (clips // 2)
            hook.remove()
        for name, value in sums.items():
            found[name].append(value)
        pairs = zip(outputs["high"], outputs["low"], strict=True)
        apart.append(sum(_relative(a, b) for a, b in pairs) / (clips // 2))
    return found, apart


def _changes(pipe: WanPipeline, prompt: str) -> list[float]:
    """Relative change of the blocks' residual from step to step, through both experts."""
    recorders = [Recorder(pipe.transformer), Recorder(pipe.transformer_2)]
    with torch.no_grad():
        generate("wan", pipe, CALL, [prompt], seed=500, batch=1)
    residual = []
    for recorder in recorders:
        recorder.close()
        pairs = zip(recorder.first[::2], recorder.last[::2], strict=True)
        residual += [last - first for first, last in pairs]
    switch = len(recorders[0].last[::2])
    changes = [_relative(a, b) for a, b in itertools.pairwise(residual)]
    around = changes[switch - 4 : switch - 1] + changes[switch : switch + 3]
    return [changes[switch - 1], sum(around) / len(around)]


def write_card(pipe: WanPipeline, folder: Path, prompts: list[str], clips: int) -> None:
    """Generate, judge, plot, and write `README.md`."""
    images = generate("wan", pipe, CALL, prompts, seed=0, batch=8)
    sheet(images[:8]).quantize(128).save(folder / "card" / "samples.png", optimize=True)
    logs = {h: json.loads((folder / "card" / f"training-{h}.json").read_text()) for h in HALVES}
    figure, axis = plt.subplots(figsize=(5, 3))
    for half, log in logs.items():
        axis.plot([row[0] for row in log["loss"]], [row[2] for row in log["loss"]], label=half)
    axis.set(xlabel="step", ylabel="loss (running mean)", yscale="log")
    axis.legend()
    _save(figure, folder / "card" / "loss.png")
    losses, apart = _losses(clips)
    jump, usual = _changes(pipe, prompts[0])
    scores: dict[str, Any] = _scores("wan", images, prompts, pipe)
    size = sum(p.stat().st_size for p in folder.glob("transformer*/*.safetensors")) / 1e6
    names = {"high": "`transformer`", "low": "`transformer_2`"}
    card = _CARD.format(
        boundary=BOUNDARY,
        shift=SHIFT,
        size=sum(p.numel() for p in pipe.transformer.parameters()) / 1e6,
        megabytes=size,
        steps=" + ".join(str(log["step"]) for log in logs.values()),
        minutes=sum(log["minutes"] for log in logs.values()),
        high=logs["high"]["step"],
        low=logs["low"]["step"],
        clips=clips,
        losses="\n".join(
            f"| {names.get(name, name)} | {high:.4f} | {low:.4f} |"
            for name, (high, low) in losses.items()
        ),
        apart_high=apart[0],
        apart_low=apart[1],
        jump=jump,
        usual=usual,
        table="\n".join(
            f"| {label} | {number} | {_percent(value)} |"
            for label, (number, value) in scores.items()
        ),
        prompts="\n".join(f"{i + 1}. {prompt}" for i, prompt in enumerate(prompts[:8])),
    )
    (folder / "README.md").write_text(card)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n", type=int, default=16, help="clips that are judged")
    parser.add_argument("--clips", type=int, default=16, help="clips of the pool for the losses")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--no-card", action="store_true")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    folder = MODELS / NAME
    write(pipeline(), folder)
    if arguments.no_card:
        return
    pipe = WanPipeline.from_pretrained(folder)
    pipe.set_progress_bar_config(disable=True)
    lines = (MODELS.parent / "prompts" / "shapes-wan.txt").read_text().splitlines()
    prompts = [line for line in lines if line and not line.startswith("#")]
    write_card(pipe, folder, prompts[: arguments.n], arguments.clips)


if __name__ == "__main__":
    main()
