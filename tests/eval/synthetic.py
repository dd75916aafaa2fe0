"""Makes an evaluation folder as `ditaccel eval` would write it, in a moment and without a model.

The figures are invented but consistent: errors grow with the knob, the frames hold the error that
the metrics state. Only tests and work on the report's looks may use it.
"""

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from ditaccel.eval.records import SCHEMA
from ditaccel.eval.summary.summarise import summarise

STEPS = 20
BRANCHES = ("cond", "uncond")
# (slug, label, series, role, spec, knob, computed share, noise in uint8 levels)
CONFIGS: tuple[tuple[str, str, str, str, str, float | None, float, float], ...] = (
    ("dense", "dense", "dense", "dense", "dense", None, 1.0, 0.0),
    ("other-seed", "dense, other seed", "other seed", "other_seed", "dense", None, 1.0, 80.0),
    *(
        (f"steps-{n}", f"{n} steps", "fewer steps", "fewer_steps", f"steps={n}", n, n / STEPS, e)
        for n, e in ((16, 7.0), (13, 11.0), (10, 17.0), (7, 28.0))
    ),
    *(
        (
            f"taylorseer-{n}",
            f"TaylorSeer N={n}",
            "TaylorSeer",
            "method",
            f"taylorseer:interval={n},order=1",
            n,
            share,
            e,
        )
        for n, share, e in ((2, 0.58, 3.0), (3, 0.44, 7.5), (4, 0.35, 14.0), (6, 0.27, 26.0))
    ),
    *(
        (
            f"cg-{i}",
            f"CG-Taylor θ={threshold}",
            "CG-Taylor",
            "method",
            f"confidence_gated_taylor:threshold={threshold}",
            threshold,
            share,
            e,
        )
        for i, (threshold, share, e) in enumerate(
            ((0.0, 1.0, 0.0), (0.05, 0.62, 1.6), (0.13, 0.42, 4.2), (0.3, 0.3, 9.5))
        )
    ),
    *(
        (f"reuse-{n}", f"reuse N={n}", "reuse", "method", f"reuse:interval={n}", n, share, e)
        for n, share, e in ((2, 0.58, 16.0), (3, 0.43, 30.0))
    ),
    *(
        (
            f"peer-{i}",
            f"cache-dit R={r}",
            "cache-dit",
            "peer",
            f"cache-dit:threshold={r}",
            r,
            share,
            e,
        )
        for i, (r, share, e) in enumerate(((0.08, 0.7, 5.0), (0.2, 0.46, 12.0)))
    ),
)


def _frames(rng: np.random.Generator, frames: int, size: int) -> np.ndarray:
    """A coloured disc that crosses a gradient, uint8 (F, H, W, 3)."""
    y, x = np.mgrid[0:size, 0:size] / size
    colour = rng.uniform(60, 255, 3)
    out = []
    for t in range(frames):
        centre = 0.25 + 0.5 * t / max(frames - 1, 1)
        disc = ((x - centre) ** 2 + (y - 0.5) ** 2 < 0.04)[..., None]
        base = np.stack([40 + 60 * x, 50 + 40 * y, np.full_like(x, 90)], -1)
        out.append(np.where(disc, colour, base))
    return np.stack(out)


def _calls(share: float, steps: int, role: str, rng: np.random.Generator) -> list[list[Any]]:
    calls: list[list[Any]] = []
    credit = 1.0
    for step in range(steps):
        credit += share
        compute = step < 2 or role not in ("method", "peer") or credit >= 1.0
        credit -= 1.0 if compute else 0.0
        for branch in BRANCHES:
            error = None if step == 0 else round(float(rng.uniform(0.01, 0.3)), 4)
            flip = role == "method" and step > 2 and rng.random() < 0.08
            action = "compute" if compute != flip else "forecast"
            calls.append([step, branch, action, "gate" if step > 1 else "warm-up", error])
    return calls


def _psnr(a: np.ndarray, b: np.ndarray) -> float:
    mse = float(np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2))
    return 99.0 if mse == 0 else min(99.0, 10 * math.log10(255**2 / mse))


def write_evaluation(
    folder: Path,
    *,
    video: bool = True,
    samples: int = 3,
    size: int = 32,
    configs: tuple[str, ...] | None = None,
    prompt: str = "a red circle that moves right",
) -> Path:
    """Write `run.json`, `results.jsonl`, `summary.json` and `media/` to `folder`.

    Args:
        folder: created if it is not there.
        video: 17 frames a sample, else one picture.
        samples: samples a configuration.
        size: side of a frame in pixels.
        configs: slugs to keep, all if None.
        prompt: the text of every prompt; a number is appended.

    Returns:
        `folder`.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    chosen = [c for c in CONFIGS if configs is None or c[0] in configs]
    frames = 17 if video else 1
    dense = [_frames(rng, frames, size) for _ in range(samples)]
    rows = []
    for config in chosen:
        for index, clean in enumerate(dense):
            picture = _noisy(rng, clean, config[-1] * (1 + 0.5 * index))
            name = f"p{index:03d}-s0"
            target = folder / "media" / config[0] / f"{name}.npz"
            target.parent.mkdir(parents=True, exist_ok=True)
            np.savez_compressed(target, frames=picture)
            psnr = _psnr(picture, np.clip(clean, 0, 255).astype(np.uint8))
            row = _row(rng, config, name, psnr, video)
            rows.append(row | {"prompt": f"{prompt} {index}"})
    _write_run(folder, chosen, rows, video, samples, prompt)
    _write_summary(folder, {c[0]: c[-1] for c in chosen})
    return folder


def _noisy(rng: np.random.Generator, clean: np.ndarray, noise: float) -> np.ndarray:
    wobble = rng.normal(0, 1, clean.shape) * noise
    if noise:
        wobble[:, :, : clean.shape[2] // 3] *= 0.2
    return np.clip(clean + wobble, 0, 255).astype(np.uint8)


def _row(
    rng: np.random.Generator, config: tuple[Any, ...], sample: str, psnr: float, video: bool
) -> dict[str, Any]:
    """One line of `results.jsonl`, as folders of earlier versions have it: scores among metrics."""
    slug, _, _, role, _, knob, share, noise = config
    speed, drift = float(rng.uniform(0.98, 1.02)), float(rng.uniform(0.97, 1.03))
    seconds = (0.15 + 0.85 * share) * 2.0 * speed * drift
    beside = {"dense": _timing(2.0 * drift), "row": _timing(seconds)}
    steps = int(knob) if role == "fewer_steps" and knob else STEPS
    return {
        "config": slug,
        "sample": sample,
        "seed": 0,
        "seconds": seconds,
        "timing": _timing(seconds),
        "pairs": [] if role == "dense" else [beside],
        "least_share": share,
        "work": share,
        "metrics": {
            "psnr": psnr,
            "mse": 10 ** (-psnr / 10),
            "identical": psnr == 99.0,
            "ssim": max(0.0, 1 - noise / 90),
            "flip": noise / 120,
            "lpips": None,
            "colour": 1.0,
            "shape": 1.0 if noise < 15 else 0.0,
            "direction": 1.0 if video else None,
        },
        "computed_share": share,
        "calls": _calls(share, steps, role, rng),
        "peak_memory_bytes": int(4e8 + (1 - share) * 1e8),
        "media": f"media/{slug}/{sample}.npz",
        "finite": True,
        "versions": {"ditaccel": "0.1.0"},
        "commit": "0000000",
        "device": {"name": "synthetic"},
    }


def _timing(seconds: float) -> dict[str, float]:
    return {"seconds": seconds, "process": 0.99 * seconds, "wait": 0.0, "denoiser": 0.9 * seconds}


def _write_run(
    folder: Path,
    chosen: list[tuple[Any, ...]],
    rows: list[dict[str, Any]],
    video: bool,
    samples: int,
    prompt: str,
) -> None:
    call = {"height": 32, "width": 32, "num_inference_steps": STEPS, "guidance_scale": 4.0}
    run = {
        "schema": SCHEMA,
        "model": "samples/models/shapes-wan" if video else "samples/models/shapes-flux",
        "family": "wan" if video else "flux",
        "task": "text-to-video" if video else "text-to-image",
        "call": call,
        "configs": [
            dict(zip(("id", "label", "series", "role", "spec", "knob"), c[:6], strict=True))
            for c in chosen
        ],
        "prompts": [f"{prompt} {index}" for index in range(samples)],
        "seeds": [0],
        "device": {"name": "synthetic CPU", "threads": 2},
        "versions": {"ditaccel": "0.1.0", "torch": "2.13.0", "diffusers": "0.42.1"},
        "commit": "0000000",
        "fps": 8 if video else None,
        "features": {"name": "shapes-features", "dim": 64},
    }
    (folder / "run.json").write_text(json.dumps(run))
    (folder / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def _write_summary(folder: Path, noise: dict[str, float]) -> None:
    """The real summary of the invented results, with distances that no extractor has measured."""
    summary = summarise(folder)
    for slug, stats in summary["configs"].items():
        stats |= {"fid_dense": noise[slug] * 0.8, "fid_dense_error": 0.3}
        stats["fid_real"] = 12.0 + noise[slug] * 0.7
    summary["not_available"] = {"lpips": "needs weights (option `weights`, lpips=FILE): VGG"}
    (folder / "summary.json").write_text(json.dumps(summary))
