"""What a tuned config must reach, and what one gave."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..caching.engine.options import MemoryBudget
from ..config import AccelerationConfig, choice
from ..config.option_types import checked
from ..errors import ConfigError
from .masks import Mask
from .promise import Promise
from .quality import MOST_PSNR, STATISTICS, doubt_of, level_of, surely

CONFIDENCE = 0.95
_GOALS = ("psnr", "computed_share", "attention_error", "level", "speedup", "seconds")


@checked()
@dataclass(frozen=True, kw_only=True)
class Target:
    """What a tuned config must reach: one goal, and what goes with it.

    Goals are `psnr`, `level` (of a `metric`), `speedup`, `seconds`, `computed_share` and
    `attention_error`; those in seconds, and other metrics than PSNR, are searched in a `Space`.

    Attributes:
        psnr: PSNR to the dense output in dB; the fastest config found that reaches it on the
            prompts given is taken, a mean by at least its standard error.
        level: of `metric`, likewise: this or better, whichever end of it is good.
        metric: a registered one that compares single samples, such as `ssim` or `lpips`.
        weights: file or folder of the metric's weights, where it needs some.
        speedup: of a generation over dense, above 1; the best config found that reaches it is
            taken, by `metric`.
        seconds: that a generation may take, likewise: of the process on a CPU, else wall-clock.
        memory: most bytes that a cache may hold, or text such as `200MB`, besides any of the goals
            in a `Space`.
        computed_share: share of the transformer calls that may be computed, between 0 and 1; the
            best config found that keeps to it is taken.
        attention_error: relative L1 error of every attention layer's output against the dense one;
            LiteAttention's thresholds per layer and part of the loop are chosen to keep to it, and
            no step is forecast.
        statistic: what has to reach `psnr`, or decides which config is best: the `mean` of the
            samples, `p10`, which nine tenths of them reach, or `min`, the worst one. A few samples
            say little about the worst of many: leave a margin.
        share: with `psnr`, the share of all samples that is promised to reach it, also of prompts
            that were not given: the least costly config is taken that holds this on prompts that
            were kept apart (`tuning.promise`).
        confidence: in that promise; 0.95 where none is given.
    """

    psnr: float | None = None
    computed_share: float | None = None
    statistic: str = "mean"
    attention_error: float | None = None
    level: float | None = None
    metric: str = "psnr"
    weights: str = ""
    speedup: float | None = None
    seconds: float | None = None
    memory: int | str | None = None
    share: float | None = None
    confidence: float | None = None

    def __post_init__(self) -> None:
        choice("statistic", self.statistic, STATISTICS)
        given = [name for name in _GOALS if getattr(self, name) is not None]
        if len(given) != 1:
            raise ConfigError(
                "a Target is Target(psnr=30), Target(computed_share=0.25), "
                "Target(attention_error=0.02), Target(metric='ssim', level=0.9), Target(speedup=2) "
                "or Target(seconds=10): one of them"
            )
        if self.metric != "psnr" and given[0] not in ("level", "speedup", "seconds"):
            raise ConfigError(f"metric goes with level, speedup or seconds, not with {given[0]}")
        for name, least in (("speedup", 1.0), ("seconds", 0.0)):
            value = getattr(self, name)
            if value is not None and not value > least:
                raise ConfigError(f"{name} is {value}; give a number above {least:g}")
        MemoryBudget.parse(self.memory)
        if self.attention_error is not None and not 0 < self.attention_error < 1:
            raise ConfigError(
                f"attention_error is {self.attention_error}; give a relative error below 1"
            )
        if self.psnr is not None and not 0 < self.psnr < MOST_PSNR:
            raise ConfigError(f"psnr is {self.psnr}; give decibels between 0 and {MOST_PSNR:g}")
        for name in ("computed_share", "share", "confidence"):
            part = getattr(self, name)
            if part is not None and not 0 < part < 1:
                raise ConfigError(f"{name} is {part}; give a part of 1, such as 0.9")
        self._check_promise()

    def _check_promise(self) -> None:
        if self.share is None:
            if self.confidence is not None:
                raise ConfigError(
                    "confidence is of a share: Target(psnr=30, share=0.9, confidence=0.95)"
                )
        elif self.psnr is None:
            raise ConfigError("share and confidence go with psnr: Target(psnr=30, share=0.9)")
        elif self.statistic != "mean":
            raise ConfigError("a share of the samples has to reach psnr: leave statistic out")
        elif self.memory is not None:
            raise ConfigError("memory cannot be promised: leave it out, or share")

    @property
    def promise(self) -> Promise | None:
        """What is promised of samples to come, None where nothing is."""
        if self.psnr is None or self.share is None:
            return None
        return Promise(self.psnr, self.share, self.confidence or CONFIDENCE)

    @classmethod
    def parse(cls, text: str, **options: Any) -> Target:
        """A target as text: `psnr=30`, `lpips=0.1`, `speedup=2`, `seconds=10`, `share=0.25`.

        Args:
            text: a goal, or the key of a metric, and its number.
            **options: further fields, such as `statistic`.

        Raises:
            ConfigError: it is not of that form.
        """
        name, _, value = (part.strip() for part in text.partition("="))
        try:
            number = float(value)
        except ValueError:
            raise ConfigError(
                f"target {text!r} is not of the form psnr=30, METRIC=LEVEL, speedup=2 or seconds=10"
            ) from None
        name = {"share": "computed_share"}.get(name, name)
        given = {name: number} if name in _GOALS else {"metric": name, "level": number}
        return cls(**given, **options)

    @property
    def needs_space(self) -> bool:
        """Whether it can be reached in a `Space` alone."""
        goals = (self.level, self.speedup, self.seconds, self.memory)
        return any(goal is not None for goal in goals)

    @property
    def asked(self) -> str:
        """What it asks for, in words."""
        of = {"mean": "", "p10": " for nine tenths of the samples", "min": " for the worst sample"}
        cache = "" if self.memory is None else f" with a cache of at most {self.memory}"
        if self.speedup is not None:
            return f"{self.speedup:g} x the speed of dense{cache}"
        if self.seconds is not None:
            return f"{self.seconds:g} s{cache}"
        if self.computed_share is not None:
            return f"a computed share of {self.computed_share:g}"
        if self.attention_error is not None:
            return f"an attention error of {self.attention_error:g}"
        level = f"{self.psnr:g} dB" if self.psnr is not None else f"{self.metric} {self.level:g}"
        return f"{level}{of[self.statistic]}{cache}"


@dataclass(frozen=True)
class TuningRun:
    """One closed-loop check of a plan: its config, and what it gave on the prompts.

    Attributes:
        config: made of the plan.
        computed_share: share of the transformer calls that were computed.
        levels: PSNR of every sample in dB.
        mask: that was run.
    """

    config: AccelerationConfig
    computed_share: float
    levels: tuple[float, ...]
    mask: Mask

    @property
    def line(self) -> str:
        """What it gave, in a line."""
        return (
            f"{self.config.label}: share {self.computed_share:.3f}, {self.psnr:.1f} dB, worst "
            f"{self.psnr_min:.1f} dB"
        )

    @property
    def psnr(self) -> float:
        """Mean PSNR of the samples in dB."""
        return self.level("mean")

    @property
    def psnr_min(self) -> float:
        """PSNR of the worst sample in dB."""
        return self.level("min")

    def level(self, statistic: str) -> float:
        """PSNR in dB: `mean`, `p10` or `min` of the samples."""
        return level_of(self.levels, statistic)

    def shown(self, statistic: str) -> str:
        """That level in words, with the standard error that a target is compared without."""
        doubt = doubt_of(self.levels, statistic)
        return f"{self.level(statistic):.1f}" + (f" ± {doubt:.1f}" if doubt else "") + " dB"

    def reaches(self, target: Target) -> bool:
        """Whether it holds what a target of steps asks for."""
        if target.psnr is not None:
            return surely(self.levels, target.statistic) >= target.psnr
        return self.computed_share <= (target.computed_share or 0.0) + 1e-9
