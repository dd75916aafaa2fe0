"""Side-by-side pictures and videos: dense, each configuration, and the difference between them."""

from __future__ import annotations

import statistics
from dataclasses import dataclass
from typing import Any

from ditaccel.eval.metrics.psnr import CAP
from ditaccel.eval.report import media
from ditaccel.eval.report.load import Evaluation
from ditaccel.eval.report.markup import Markup, breakable, el
from ditaccel.eval.report.media import Frames
from ditaccel.eval.specs import COMPARED, JUDGED, Role, RunConfig

SAMPLES = 3
# Cards that a screen of 1400 pixels shows side by side.
ROW = 6
# Browsers refuse more than some dozens of video elements in a page, so later samples get strips.
MOVING = 2
# Characters of data URIs a page may hold, so that the file stays below 8 MB.
BUDGET = 6_500_000


@dataclass(frozen=True)
class Pick:
    """A sample to show, and why."""

    sample: str
    why: str


def _psnr(row: dict[str, Any]) -> float | None:
    value = (row.get("metrics") or {}).get("psnr")
    return float(value) if isinstance(value, int | float) else None


def pick_samples(evaluation: Evaluation) -> list[Pick]:
    """The worst sample first, then a typical one, then the next worst.

    Worst is the lowest PSNR that any method or peer reached; typical has the median of the
    samples' mean PSNR.
    """
    judged = [c for c in evaluation.configs if c.role in JUDGED]
    judged = judged or [c for c in evaluation.configs if c.role in COMPARED]
    scores: dict[str, list[tuple[float, str]]] = {}
    for config in judged:
        for sample, row in evaluation.rows.get(config.id, {}).items():
            psnr = _psnr(row)
            if psnr is not None:
                scores.setdefault(sample, []).append((psnr, config.label))
    if not scores:
        first = evaluation.rows.get(evaluation.dense.id, {}) if evaluation.dense else {}
        return [Pick(sample, "first sample") for sample in list(first)[:1]]
    lowest = sorted(scores, key=lambda s: min(scores[s]))
    means = {s: statistics.fmean(p for p, _ in scores[s]) for s in scores}
    middle = statistics.median_low(means.values())
    typical = next(s for s in scores if means[s] == middle)

    def worst(sample: str, word: str) -> Pick:
        psnr, label = min(scores[sample])
        return Pick(sample, f"{word}: {label} falls to {psnr:.1f} dB here")

    picks = [worst(lowest[0], "Worst sample")]
    if typical != lowest[0]:
        picks.append(
            Pick(typical, f"Typical sample: mean PSNR {means[typical]:.1f} dB, the median")
        )
    picks += [worst(s, "Next worst") for s in lowest[1:] if s != typical]
    return picks[:SAMPLES]


class Gallery:
    """Builds the cards and keeps count of what they weigh."""

    def __init__(self, evaluation: Evaluation) -> None:
        self.evaluation = evaluation
        self.fps = float(evaluation.run.get("fps") or 8)
        self.spent = 0
        self.left_out = 0

    def _uri(self, uri: str) -> str:
        self.spent += len(uri)
        return uri

    def _frames(self, config: RunConfig, sample: str) -> tuple[Frames | None, str]:
        """Frames of one result, or None and the reason in words."""
        failed = self.evaluation.failed(config.id)
        if sample in failed:
            return None, f"failed: {failed[sample]}"
        row = self.evaluation.rows.get(config.id, {}).get(sample)
        if row is None:
            return None, "no result for this sample"
        name = row.get("media")
        path = self.evaluation.folder / str(name)
        if not name or not path.is_file():
            return None, "its picture file is not in the folder"
        return media.read_frames(path), ""

    def _picture(self, frames: Frames, alt: str, moving: bool) -> list[Markup]:
        if len(frames) == 1:
            height, width = frames.shape[1:3]
            uri = self._uri(media.encode_picture(frames[0]))
            return [el("img", src=uri, alt=alt, width=width, height=height, cls="frame")]
        strip = self._strip(frames, f"{alt}, frames from first to last", "strip")
        if not moving:
            return [strip]
        height, width = frames.shape[1:3]
        video = el(
            "video", src=self._uri(media.encode_video(frames, self.fps)), aria_label=alt,
            width=width, height=height, cls="frame",
            muted=True, loop=True, playsinline=True, controls=True, preload="auto",
        )  # fmt: skip
        return [video, strip]

    def _strip(self, frames: Frames, alt: str, cls: str) -> Markup:
        strip = media.frame_strip(frames)
        uri = self._uri(media.encode_picture(strip, side=strip.shape[1]))
        return el("img", src=uri, alt=alt, width=strip.shape[1], height=strip.shape[0], cls=cls)

    def _heat(self, frames: Frames, dense: Frames | None, label: str) -> Markup:
        if dense is None or dense.shape != frames.shape:
            return el("p", "no difference map: the size is not dense's", cls="muted")
        heat = media.heat_map(frames, dense)
        alt = f"difference between {label} and dense"
        if len(frames) > 1:
            return self._strip(heat, f"{alt}, frames from first to last", "strip heat")
        uri = self._uri(media.encode_picture(heat[0]))
        return el(
            "img", src=uri, alt=alt, width=heat.shape[2], height=heat.shape[1], cls="frame heat"
        )

    def _card(self, config: RunConfig, sample: str, dense: Frames | None, moving: bool) -> Markup:
        frames, reason = self._frames(config, sample)
        row = self.evaluation.rows.get(config.id, {}).get(sample) or {}
        psnr = _psnr(row)
        facts = []
        if config.role is Role.DENSE:
            facts.append("reference")
        elif psnr is not None:
            facts.append("identical to dense" if psnr >= CAP else f"{psnr:.1f} dB")
        speed = self.evaluation.number(config, "speedup", "median")
        if speed is not None and config.role is not Role.DENSE:
            facts.append(f"{speed:.2f}×")
        caption = el("figcaption", el("b", breakable(config.label)), el("span", " · ".join(facts)))
        if frames is None:
            return el("figure", caption, el("p", reason, cls="bad"), cls=f"card {config.role}")
        body = self._picture(frames, f"{config.label}: {row.get('prompt', sample)}", moving)
        if config.role is not Role.DENSE:
            body.append(self._heat(frames, dense, config.label))
        return el("figure", caption, body, cls=f"card {config.role}")

    def _series(self, sample: str, dense: Frames | None, moving: bool) -> list[Markup]:
        """Cards of everything but dense: one row per series, small series together."""
        series: dict[str, list[Markup]] = {}
        for config in self.evaluation.configs:
            if config.role not in COMPARED:
                continue
            if self.spent > BUDGET:
                self.left_out += 1
                continue
            card = self._card(config, sample, dense, moving)
            series.setdefault(config.series, []).append(card)
        rows: list[list[Markup]] = []
        for cards in series.values():
            if rows and len(rows[-1]) + len(cards) <= ROW:
                rows[-1] += cards
            else:
                rows.append(list(cards))
        return [el("div", cards, cls="cards") for cards in rows]

    def sample(self, pick: Pick, moving: bool, opened: bool) -> Markup:
        """All cards of one sample; `moving` adds the videos to the strips."""
        first = self.evaluation.dense
        dense = self._frames(first, pick.sample)[0] if first else None
        reference = self._card(first, pick.sample, None, moving) if first else None
        rows = self.evaluation.rows.values()
        prompt = next((row[pick.sample]["prompt"] for row in rows if pick.sample in row), "")
        controls = None
        if moving and dense is not None and len(dense) > 1:
            controls = el(
                "p",
                el("button", "Pause", type="button", cls="play"),
                el("button", "Half speed", type="button", cls="slow", aria_pressed="false"),
                cls="controls",
            )
        return el(
            "details",
            el(
                "summary",
                el("h3", pick.why),
                el("span", el("q", prompt), el("code", pick.sample), cls="prompt"),
            ),
            controls,
            el("div", reference, el("div", self._series(pick.sample, dense, moving)), cls="stage"),
            cls="sample",
            # One sample says what to look for; the others are a click away.
            open=opened,
        )


def _scale(video: bool) -> Markup:
    hint = (
        "The videos of one sample play in step; below each: frames from first to last, then their "
        "difference to dense."
        if video
        else "Press and hold a picture to see dense in its place; below: its difference to dense."
    )
    return el(
        "p",
        hint,
        " Equal ",
        el("img", src=media.heat_legend(), alt="black", cls="ramp", width=256, height=1),
        f" {media.HEAT_MAX} of 255 levels or more, mean of the colour channels.",
        cls="legend",
    )


def gallery(evaluation: Evaluation) -> Markup | None:
    """Cards of a few samples, the worst first.

    Returns:
        None if no configuration but dense has a result to show.
    """
    if not any(c.role in COMPARED for c in evaluation.configs):
        return None
    builder = Gallery(evaluation)
    picks = pick_samples(evaluation)
    samples = [builder.sample(pick, i < MOVING, i == 0) for i, pick in enumerate(picks)]
    note = None
    if builder.left_out:
        note = el(
            "p",
            f"{builder.left_out} more pictures were left out to keep this page small; all frames "
            "lie in the folder media/.",
            cls="muted",
        )
    return el("div", _scale(evaluation.moving), samples, note)
