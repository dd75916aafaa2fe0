"""Feature extractors behind distances of sets: a folder's own network, a known one, the user's."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from ditaccel.errors import DitaccelError, UsageError
from ditaccel.io import given

from ..registry import Registry
from .base import Metric
from .frames import to_frames
from .weights import load_weights

_FORMS = "a network's folder, efficientnet-lite0, inception=WEIGHTS or module:Class=WEIGHTS"
HOW = f"needs a feature network (option `features`: {_FORMS})"
JUDGE_HOW = "nothing here judges the prompts of this model: a feature network may bring a judge"


class Judge(Protocol):
    """Judges whether a sample shows what its prompt asks for.

    One with a method `same(reference, frames) -> bool` also tells whether two samples show the same
    picture; such samples count as kept however far their pixels are apart. It must look at more
    than what the prompt says, or every good sample would be kept.
    """

    @property
    def scores(self) -> Sequence[Metric]:
        """Its scores as metrics (see `base.score`)."""

    def __call__(self, frames: Any, prompt: str, label: int | None) -> Mapping[str, float]:
        """Shares in [0, 1] by the key of the score; empty where the prompt is beyond it.

        Args:
            frames: uint8 (F, H, W, 3).
            prompt: text or class name.
            label: class number, where the model is asked by class.
        """


@dataclass(frozen=True)
class Extractor:
    """Features of whole samples.

    Attributes:
        name: printed with every distance, because distances of two extractors cannot be compared.
        dim: width of the features.
        judge: of prompts, where the network can judge them.
    """

    name: str
    dim: int
    run: Callable[[Tensor], Tensor]
    judge: Judge | None = None

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


# What opens a folder: gives None for a folder of another kind.
FOLDERS: Registry[Callable[[Path], Extractor | None]] = Registry(
    "kind of feature folder", "ditaccel.eval.shapes"
)


def register_folder(name: str, opens: Callable[[Path], Extractor | None]) -> None:
    """Make a kind of folder known to the option `features`.

    Args:
        name: of the kind.
        opens: makes the extractor of a folder, or None of a folder of another kind.

    Raises:
        ConfigError: the name is taken.
    """
    FOLDERS.add(name, opens)


# What opens a network that has a name: is given the path of its weights, "" where none is named.
NETWORKS: Registry[Callable[[str], Extractor]] = Registry(
    "feature network", "ditaccel.eval.metrics"
)


def register_network(name: str, opens: Callable[[str], Extractor]) -> None:
    """Make a network known to the option `features`, as NAME or NAME=WEIGHTS.

    Args:
        name: of the network.
        opens: makes the extractor of the path of its weights, "" where the user names none.

    Raises:
        ConfigError: the name is taken.
    """
    NETWORKS.add(name, opens)


def _folder(folder: Path) -> Extractor:
    for name in FOLDERS:
        try:
            found = FOLDERS[name](folder)
        except Exception as error:
            # A broken weights file raises a type of its own.
            line = str(error).strip().split("\n")[0][:200]
            raise UsageError(f"{folder} is not a usable {name}: {line}", "features") from error
        if found is not None:
            return found
    raise UsageError(
        f"{folder} holds no feature network ({', '.join(FOLDERS)}); give {_FORMS}", "features"
    )


def frames_mean(net: nn.Module) -> Callable[[Tensor], Tensor]:
    """Mean over the frames of a clip of an image network's features."""

    def run(images: Tensor) -> Tensor:
        clip = images[0] if images.ndim == 5 else images
        return torch.as_tensor(net(clip)).flatten(1).mean(0, keepdim=True)

    return run


def _custom(target: str, weights: str) -> Extractor:
    module_name, _, class_name = target.partition(":")
    try:
        cls = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise UsageError(f"{target}: cannot import it ({error})", "features") from error
    try:
        net = cls()
        net.load_state_dict(load_weights(weights))
        net.eval()
    except DitaccelError:
        raise
    except Exception as error:
        line = str(error).strip().split("\n")[0][:200]
        raise UsageError(
            f"{target}={weights}: the class must be an nn.Module without arguments that these "
            f"weights fit ({line})",
            "features",
        ) from error
    dim = getattr(net, "num_features", None)
    if not isinstance(dim, int):
        raise UsageError(f"{target}: the class needs an integer `num_features`", "features")
    return Extractor(f"{target}={Path(weights).name}", dim, frames_mean(net))


def load_extractor(spec: str) -> Extractor:
    """The extractor a user named.

    Args:
        spec: a folder of a registered kind, a registered network as `NAME` or `NAME=WEIGHTS`, or
            `module:Class=WEIGHTS` (a module without arguments, image (N, 3, H, W) in [0, 1] →
            (N, num_features)). Image networks see each frame of a clip, and the mean counts.

    Raises:
        UsageError: it names nothing usable, with what to do.
    """
    head, separator, weights = spec.partition("=")
    if separator and ":" in head:
        return _custom(head, weights)
    if head in NETWORKS:
        return NETWORKS[head](weights)
    folder = given.path(spec)
    if folder.is_dir():
        return _folder(folder)
    raise UsageError(f"{spec!r} is neither a folder nor a known form: give {_FORMS}", "features")
