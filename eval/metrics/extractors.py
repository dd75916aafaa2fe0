"""Feature extractors behind FID and KID: the samples' own network, Inception, or the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io import given

from .frames import to_frames
from .weights import load_weights

HOW = (
    "give --features FOLDER (a trained FeatureNet such as samples/models/shapes-features), "
    "--features inception=WEIGHTS, or --features module:Class=WEIGHTS"
)


@dataclass(frozen=True)
class Extractor:
    """Features of whole samples.

    Attributes:
        name: printed with every distance, because distances of two extractors cannot be compared.
        dim: width of the features.
        judge: the FeatureNet, where prompt accuracy can be judged with it; else None.
    """

    name: str
    dim: int
    run: Callable[[Tensor], Tensor]
    judge: Any = None

    def __call__(self, samples: Iterable[Any]) -> Tensor:
        """Features (N, dim) of N samples, each (F, H, W, 3).

        Raises:
            UsageError: unusable frames, or features of a wrong shape.
        """
        rows = []
        for sample in samples:
            clip = to_frames(sample).float()
            with torch.inference_mode():
                row = self.run(clip[None] if len(clip) > 1 else clip)
            if row.shape != (1, self.dim):
                raise UsageError(
                    f"extractor {self.name} gave {tuple(row.shape)} for one sample, "
                    f"expected (1, {self.dim})"
                )
            rows.append(row.double().cpu())
        if not rows:
            raise UsageError("no samples to extract features of")
        return torch.cat(rows)


def _feature_net(folder: Path) -> Extractor:
    from ditaccel.eval.shapes.features import FeatureNet

    try:
        net = FeatureNet.from_pretrained(folder)
    except Exception as error:
        # A broken safetensors file raises a type of its own.
        line = str(error).strip().split("\n")[0][:200]
        raise UsageError(f"--features {folder} is no usable feature network: {line}") from error
    dim: Any = net.config["features"]
    return Extractor(folder.resolve().name, dim, net.features, judge=net)


def _frames_mean(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Mean over the frames of a clip of an image network's features."""

    def run(images: Tensor) -> Tensor:
        clip = images[0] if images.ndim == 5 else images
        return torch.as_tensor(net(clip)).flatten(1).mean(0, keepdim=True)

    return run


def _inception(weights: str) -> Extractor:
    from .inception import Inception

    net = Inception(load_weights(weights))
    return Extractor("inception-2015-12-05", net.num_features, _frames_mean(net))


def _custom(target: str, weights: str) -> Extractor:
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"--features {target}: cannot import it ({error})") from error
    try:
        net = cls()
        net.load_state_dict(load_weights(weights))
        net.eval()
    except DitaccelError:
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"--features {target}={weights}: the class must be an nn.Module without arguments "
            f"that these weights fit ({line})"
        ) from error
    dim = getattr(net, "num_features", None)
    if not isinstance(dim, int):
        raise UsageError(f"--features {target}: the class needs an integer `num_features`")
    return Extractor(f"{target}={Path(weights).name}", dim, _frames_mean(net))


def load_extractor(spec: str) -> Extractor:
    """The extractor a user named.

    Args:
        spec: a FeatureNet folder, `inception=WEIGHTS`, or `module:Class=WEIGHTS` (a module without
            arguments, image (N, 3, H, W) in [0, 1] → (N, num_features); clips are averaged).

    Raises:
        UsageError: it names nothing usable, with what to do.
    """
    head, separator, weights = spec.partition("=")
    if separator and head == "inception":
        return _inception(weights)
    if separator and ":" in head:
        return _custom(head, weights)
    folder = given.path(spec)
    if folder.is_dir():
        return _feature_net(folder)
    raise UsageError(f"--features {spec!r} is neither a folder nor a known form: {HOW}")
