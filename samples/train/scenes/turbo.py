"""scenes-flux-turbo: 4 or 8 steps without guidance, distilled from scenes-flux's own ways."""

from __future__ import annotations

import torch
from pools import Trajectories
from torch import Tensor

from scenes.flux import image_ids
from scenes.vae import CHANNELS
from scenes.words import TOKENS, captions, held_out
from scenes.world import sample_scenes


class SceneTrajectories(Trajectories):
    """Ways from noise to picture that the exported scenes-flux takes with its guidance."""

    NAME = "scenes-flux-turbo"
    RECORD = "scenes_pool.py ways"
    EXPORT = "scenes_export.py scenes-flux"
    TEACHER = Trajectories.TEACHER.with_name("scenes-flux")
    CHUNK = 16
    SHAPE = (1024, CHANNELS * 4)
    TOKENS = TOKENS

    @staticmethod
    def positions() -> Tensor:
        return image_ids(False)

    @classmethod
    def captions(cls, generator: torch.Generator) -> list[str]:
        texts = captions(sample_scenes(cls.CHUNK, generator), generator)
        return [text for text in texts if not held_out(text)]
