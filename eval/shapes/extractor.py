"""The shapes samples' own network as `ditaccel eval` takes it: features, and a judge of prompts."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..metrics.extractors import Extractor, register_folder
from .accuracy import ShapesJudge
from .features import FeatureNet


def feature_net(folder: Path) -> Extractor | None:
    """The extractor of a folder with a `FeatureNet`; None for another folder."""
    config = folder / "config.json"
    # Other networks of ours name themselves; this one came first.
    if not config.is_file() or "network" in json.loads(config.read_text()):
        return None
    net = FeatureNet.from_pretrained(folder)
    dim: Any = net.config["features"]
    return Extractor(folder.resolve().name, dim, net.features, judge=ShapesJudge(net))


register_folder("FeatureNet", feature_net)
