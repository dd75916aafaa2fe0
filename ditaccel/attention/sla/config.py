"""The options of SLA."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ...config import Example, method, require
from ..engine.options import FixedTileOptions, Swept
from .defaults import TRAINED, check_sum
from .planner import SLAPlanner
from .weights import SLAWeights

Mode = Literal["training_free", "sla", "combined", "sparse"]
FeatureMapName = Literal["softmax", "elu", "relu", "hedgehog", "norm_aware"]
SHARES = ("critical", "negligible")


@method("sla", paper="2509.24006")
@dataclass(frozen=True, kw_only=True)
class SLAConfig(FixedTileOptions):
    """The tiles that count most exactly; the others by their moments, or a trained projection.

    Options that are None take the value that the file in `weights` was trained with, or their
    default. Options that all methods share are described in `TileOptions`; here `rest` is what
    stands for marginal tiles: `moments` in the modes `training_free` and `combined`, `nothing` in
    the others, by default.

    Args:
        critical: share of the key tiles that each query tile computes exactly, at least one tile
            (k_h of the paper); 0.05 by default. This is the density that `report` shows.
        negligible: share that it skips (k_l); by default 0.1 in the modes `sla` and `sparse`, and
            0 in the others, where a marginal tile costs next to nothing.
        mode: `training_free`: marginal tiles under one softmax with the critical ones (ours), the
            default without weights; with weights that were trained for it, or for `combined`, it
            takes their changes of the model's own weights alone, which cost no time; `sla`: the
            paper's rule, which needs weights and is the default for weights of that mode
            (`published:sla:weights=FILE` has the authors' tiles and dense steps too); `combined`:
            training-free, and the trained projection of the linear branch on top (ours); `sparse`:
            marginal tiles skipped too, to compare with.
        weights: safetensors file that `ditaccel.finetune` wrote.
        choose_by: what makes a tile critical: `mass`, the published rule, pooled queries times
            pooled keys; or `error`, what its moments would get wrong, mass times the spread of
            scores and values. None: `error` where something stands for marginal tiles, else
            `mass`. (The published option smooth-k, keys less their mean, moves all scores of a row
            alike and changes no map.)
        feature_map: of the linear branch: `softmax` (default), `elu`, `relu`, `hedgehog` or
            `norm_aware`.
        linear: keys that the linear branch sums over: those of `marginal` tiles, as in the paper
            and its first code (default), or `all`, as in the authors' code since December 2025.
        projection: of the linear branch: one weight `per_head` (ours, default), or one that all
            heads of a layer share (`shared`), as in the authors' code.
        cube: frames, rows and columns of the neighbourhood that a tile of keys should be; tokens
            are put in that order in the heads which it serves. (16, 2, 2) by default, in the modes
            `sla` and `sparse` (), the order of the model. Families that hand packed latents over
            (Flux, LTX, Qwen-Image) keep their order.
        dense_steps: first steps that stay dense: a number, or a share of the steps below 1.
            Published: 0, also in the mode `sla`, where it has to be given.
        q_tile: query tokens per tile; 128 by default, 32 in sequences below 8192 tokens.
        k_tile: key tokens per tile; 64 by default, 32 in sequences below 8192 tokens.
    """

    published: ClassVar[Mapping[str, Mapping[str, Any]]] = {
        "": {
            "mode": "sla",
            "critical": 0.05,
            "negligible": 0.0,  # the paper's third class is in none of the authors' code
            "choose_by": "mass",
            "feature_map": "softmax",
            "linear": "marginal",
            "projection": "shared",
            "cube": (),
            "dense_steps": 0,
            "q_tile": 64,
            "k_tile": 64,
            "min_tokens": 0,
            "break_even": 1.0,
        }
    }

    swept: ClassVar[Swept] = Swept("critical", (0.03, 0.05, 0.1, 0.2, 0.3, 0.5))

    critical: float | None = None
    negligible: float | None = None
    mode: Mode | None = None
    weights: str | os.PathLike[str] | None = None
    choose_by: Literal["mass", "error"] | None = None
    feature_map: FeatureMapName | None = None
    linear: Literal["marginal", "all"] | None = None
    projection: Literal["per_head", "shared"] | None = None
    cube: tuple[int, ...] | None = None
    q_tile: int | None = None  # type: ignore[assignment]
    k_tile: int | None = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in SHARES:
            value = getattr(self, name)
            if value is not None:
                require(0.0 <= value <= 1.0, f"{name} is {value:g}; {_cure(name, value)}")
        if self.critical is not None and self.negligible is not None:
            check_sum(self.critical, self.negligible)
        if self.cube is not None:
            require(
                len(self.cube) in (0, 3) and all(n >= 1 for n in self.cube),
                f"cube is {self.cube}; give frames, rows and columns, such as [4, 4, 4], or []",
            )

    @classmethod
    def check_old(cls, options: Mapping[str, Any]) -> None:
        """Refuse options that were written when shares were percentages, with the values of today.

        Raises:
            ConfigError: they hold `qk`, which all files of that time do.
        """
        given = {name: options.get(name) for name in SHARES}
        shares = [
            f"{name}: {value / 100:g}"
            for name, value in given.items()
            if isinstance(value, (int, float))
        ]
        write = f", and write {' and '.join(shares)}" if shares else ""
        require(
            "qk" not in options,
            "sla has no option 'qk' any more, and critical and negligible are shares now, not "
            f"percentages: delete qk{write}",
        )

    @classmethod
    def examples(cls) -> tuple[Example, ...]:
        """See `MethodConfig`."""
        tiles = cls(q_tile=16, k_tile=16, min_tokens=0, dense_steps=0, break_even=1.0)
        return (Example(replace(tiles, critical=1.0), replace(tiles, critical=0.2)),)

    def planner(self) -> SLAPlanner:
        """What the seam carries out.

        Raises:
            UsageError: the file of `weights` cannot be read.
            ConfigError: it holds no weights of SLA, or was trained with other options than those
                given; or the mode needs weights and there are none.
        """
        require(
            self.weights is not None or self.mode not in TRAINED,
            f"mode={self.mode!r} needs weights=FILE of a projection that ditaccel.finetune has "
            "trained (untrained it adds nothing); or choose mode='training_free'",
        )
        if self.weights is None:
            return SLAPlanner(self, None)
        return SLAPlanner(self, SLAWeights.load(os.fspath(self.weights)))


def _cure(name: str, value: float) -> str:
    """What to write in place of a value that is not a share: old files hold percentages."""
    if not 1 < value <= 100:
        return "it is a share of the key tiles, from 0 to 1"
    return f"it is a share of the key tiles now, not a percentage: give {name}={value / 100:g}"
