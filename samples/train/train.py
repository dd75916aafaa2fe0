"""Train one sample model: `python samples/train/train.py MODEL --minutes M`.

Every call goes on where the last one stopped. Order for a start from nothing: features, image-vae,
video-vae, then dit, flux and wan; wan22-high and wan22-low, which start from wan; flux-few, from
its pool of trajectories; scenes-vae, its pool (scenes_pool.py), then scenes-flux. README.md has the
order for all of them. Set SHAPES_PAUSE_FILE to a path to make the loop wait while that file exists,
and SAMPLES_RUNS to a folder that shall hold all states in place of `runs/`.
"""

from __future__ import annotations

import argparse
from functools import partial
from typing import Any

import torch
from denoisers import (
    build_dit,
    build_few,
    build_flux,
    build_wan,
    dit_loss,
    few_loss,
    flux_loss,
    wan_loss,
)
from judge_task import build_features, feature_loss
from loop import Run
from pools import Pool, Trajectories
from text import teach_binding
from torch import nn
from vae import build_image_vae, build_video_vae, vae_loss

DENOISER: dict[str, Any] = {"rate": 1e-3, "muon": True, "muon_factor": 3.0, "compiled": True}


def _image_vae() -> tuple:
    return Run("image-vae", build_image_vae(), rate=2e-3), vae_loss(lambda step: (16, 1))


def _video_vae() -> tuple:
    # A single frame is a cheap picture autoencoder; clips must be long enough to fill the memory
    # of the causal convolutions, else colours drift later on.
    def frames(step: int) -> tuple[int, int]:
        return (16, 1) if step < 1000 or step % 3 == 0 else (3, 9)

    return Run("video-vae", build_video_vae(), rate=2e-3), vae_loss(frames)


def _freeze_encoder(run: Run) -> None:
    """Keep latents as they are in the pools, and let the decoder learn on."""
    for part in ("encoder", "quant_conv"):
        module = getattr(run.model, part)
        stored = {
            k.removeprefix(part + "."): v for k, v in run.ema.items() if k.startswith(part + ".")
        }
        module.load_state_dict(stored)
        module.requires_grad_(False)


def _features() -> tuple:
    return Run("features", build_features(), rate=2e-3), feature_loss()


def _dit() -> tuple:
    run = Run("dit", build_dit(), **DENOISER)
    return run, dit_loss(Pool("dit"), 96)


def _flux() -> tuple:
    def prepare(model: nn.ModuleDict) -> None:
        teach_binding(model["text_encoder_2"], model["binding"], moving=False)

    run = Run("flux", build_flux(), prepare, decay=0.997, **DENOISER)
    return run, flux_loss(Pool("flux", two_share=0.75 if run.step > 6000 else None), 64)


def _flux_few() -> tuple:
    run = Run("flux-few", build_few(), **{**DENOISER, "rate": 3e-4}, decay=0.99)
    return run, few_loss(Trajectories(), 64)


def _wan() -> tuple:
    # Weights and rotary positions are shared by all lengths, so most updates are on short clips.
    # Which shape belongs to which colour shows in pictures too, at an eighth of a clip's cost for
    # each scene; the published weights took to it late.
    def plan(step: int) -> tuple[int, int]:
        if step < 3000 or step % 6 == 0 or (13_500 <= step < 15_000 and step % 6 in (1, 2, 4)):
            return (64, 1)
        return (2, 32) if step % 6 == 3 else (8, 8)

    def prepare(model: nn.ModuleDict) -> None:
        teach_binding(model["text_encoder"], model["binding"], moving=True)

    run = Run("wan", build_wan(), prepare, decay=0.995, **DENOISER)
    return run, wan_loss(
        Pool("wan-images", two_share=0.75), lambda: Pool("wan", two_share=0.75), plan
    )


def _expert(half: str) -> tuple:
    from experts import build_expert, expert_loss, from_wan

    run = Run(
        f"wan22-{half}", build_expert(), from_wan, rate=6e-4, muon=True, muon_factor=2.0, decay=0.99
    )
    return run, expert_loss(Pool("wan", two_share=0.75), high=half == "high")


def _scenes_vae() -> tuple:
    from scenes.vae import build_vae, vae_loss

    run = Run("scenes-vae", build_vae(), rate=3e-3, decay=0.995)
    return run, vae_loss(16)


def _scenes_flux() -> tuple:
    from scenes.flux import build_flux, flux_loss
    from scenes.pools import Pool

    run = Run("scenes-flux", build_flux(), decay=0.998, **DENOISER)
    return run, flux_loss(Pool())


def _scenes_video_vae() -> tuple:
    from scenes.video import build_video_vae, video_vae_loss

    def plan(step: int) -> tuple[int, int]:
        return (16, 1) if step < 1500 or step % 3 == 0 else (3, 9)

    return Run("scenes-video-vae", build_video_vae(), rate=2e-3), video_vae_loss(plan)


def _scenes_wan() -> tuple:
    from scenes.pools import Clips
    from scenes.wan import build_wan, wan_loss

    run = Run("scenes-wan", build_wan(), decay=0.998, **DENOISER)
    return run, wan_loss(Clips(single=True), lambda: Clips(single=False))


def _scenes_features() -> tuple:
    from scenes.judge import build_judge, judge_loss

    return Run("scenes-features", build_judge(), rate=2e-3), judge_loss()


def _scenes_flux_turbo() -> tuple:
    from scenes.turbo import SceneTrajectories

    ways = SceneTrajectories()
    student = build_few(SceneTrajectories)
    run = Run("scenes-flux-turbo", student, **{**DENOISER, "rate": 3e-4}, decay=0.99)
    return run, few_loss(ways, 6)


def _scenes_expert(half: str) -> tuple:
    from scenes.experts import build_expert, expert_loss, from_wan
    from scenes.pools import Clips

    options = {**DENOISER, "rate": 6e-4, "muon_factor": 2.0}
    run = Run(f"scenes-wan22-{half}", build_expert(), from_wan, decay=0.99, **options)
    return run, expert_loss(Clips(single=False), high=half == "high")


MODELS = {
    "features": _features,
    "image-vae": _image_vae,
    "video-vae": _video_vae,
    "dit": _dit,
    "flux": _flux,
    "flux-few": _flux_few,
    "wan": _wan,
    "wan22-high": partial(_expert, "high"),
    "wan22-low": partial(_expert, "low"),
    "scenes-vae": _scenes_vae,
    "scenes-flux": _scenes_flux,
    "scenes-video-vae": _scenes_video_vae,
    "scenes-wan": _scenes_wan,
    "scenes-features": _scenes_features,
    "scenes-flux-turbo": _scenes_flux_turbo,
    "scenes-wan22-high": partial(_scenes_expert, "high"),
    "scenes-wan22-low": partial(_scenes_expert, "low"),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--steps", type=int, help="stop at this step, however long it takes")
    parser.add_argument("--anneal", action="store_true", help="let the learning rate fall to 5 %%")
    parser.add_argument("--decoder-only", action="store_true", help="leave latents as they are")
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    run, loss = MODELS[arguments.model]()
    if arguments.decoder_only:
        _freeze_encoder(run)
    run.train(loss, arguments.minutes, anneal=arguments.anneal, until=arguments.steps)


if __name__ == "__main__":
    main()
