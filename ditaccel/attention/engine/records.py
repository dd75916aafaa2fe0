"""What is remembered of attention calls for the report, without waiting for the device."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...core.stopwatch import Stopwatch
from ...errors import UsageError
from ...kernels import Precision, TileMap
from .planner import DenseReason

# Side of the pictures of tile maps.
_THUMBNAIL = 48
# A batch job makes thousands of generations: calls beyond this are forgotten, the oldest first.
MAX_RECORDS = 50_000
_SCORES: dict[Precision, str] = {"model": "", "int8": " with 8-bit scores"}
_DIGITS = "0123456789#"
_LEGEND = "kept, skipped; queries run down, keys to the right; grey: not sparse"


@dataclass(frozen=True)
class AttentionRecord:
    """One attention call.

    Attributes:
        generation: denoising loop since `accelerate`, from 0.
        step: scheduler step within the loop, from 0.
        branch: guidance branch.
        transformer: component it belongs to.
        layer: number of the attention layer.
        density: computed share of the attention matrix, 1 where dense.
        reason: what the map was, or why it was dense, for people.
        cause: why it was dense; None where a tile map was computed.
        watch: laps of planning and of running.
    """

    generation: int
    step: int
    branch: str
    transformer: str
    layer: int
    density: float | Tensor
    reason: str
    cause: DenseReason | None
    watch: Stopwatch = field(repr=False)

    @property
    def sparse(self) -> bool:
        """Whether a tile map was computed."""
        return self.cause is None


def thumbnail(tile_map: TileMap) -> Tensor:
    """Kept share of regions of a map, mean over batch and heads, uint8 `(<=48, <=48)`."""
    kept = tile_map.to_mask().float().mean((0, 1))[None, None]
    rows, columns = (min(_THUMBNAIL, n) for n in kept.shape[-2:])
    return F.adaptive_avg_pool2d(kept, (rows, columns))[0, 0].mul(255).round().to(torch.uint8)


def _digit(densities: list[float] | None) -> str:
    """The mean in tenths, # for all; a space where there is none."""
    return _DIGITS[int(10 * sum(densities) / len(densities) + 1e-9)] if densities else " "


class AttentionLog:
    """The attention calls of one transformer since `accelerate`.

    Attributes:
        transformer: its component name.
        layers: names of its self-attention layers, in order.
        precision: of the scores of sparse calls.
        rank: number of this one of the ranks that share the heads, and their count; None where all
            heads are computed here. Densities are those of all heads, pictures those of the heads
            that are computed here.
        records: the newest calls.
        maps: pictures of the newest generation's maps by (layer, branch, step): kept share of
            regions, 255 for all.
    """

    def __init__(self, transformer: str, layers: list[str], precision: Precision = "model") -> None:
        self.transformer = transformer
        self.layers = layers
        self.precision = precision
        self.rank: tuple[int, int] | None = None
        self.records: list[AttentionRecord] = []
        self.maps: dict[tuple[int, str, int], Tensor] = {}

    def copy(self) -> AttentionLog:
        """What is in it now; the copy does not grow."""
        made = AttentionLog(self.transformer, list(self.layers), self.precision)
        made.records, made.maps, made.rank = list(self.records), dict(self.maps), self.rank
        return made

    def add(self, record: AttentionRecord) -> None:
        """Book one call."""
        self.records.append(record)
        if len(self.records) > MAX_RECORDS:
            del self.records[: MAX_RECORDS // 2]

    def last_generation(self) -> list[AttentionRecord]:
        """The calls of the newest denoising loop."""
        newest = self.records[-1].generation if self.records else 0
        return [r for r in self.records if r.generation == newest]

    def rows(self) -> list[dict[str, Any]]:
        """One plain row per call of the newest generation; waits for the device."""
        rows = []
        for r in self.last_generation():
            planning, running = r.watch.seconds()
            rows.append(
                {
                    "transformer": r.transformer,
                    "generation": r.generation,
                    "step": r.step,
                    "branch": r.branch,
                    "layer": r.layer,
                    "density": float(r.density),
                    "reason": r.reason,
                    "planning_s": planning,
                    "running_s": running,
                }
            )
        return rows

    @property
    def density(self) -> float:
        """Mean computed share of the attention matrices of the newest generation."""
        newest = self.last_generation()
        return sum(float(r.density) for r in newest) / len(newest) if newest else 1.0

    def headline(self) -> str:
        """The newest generation in one line."""
        rows = self.rows()
        if not rows:
            return f"Attention of {self.transformer}: no call was seen."
        sparse = sum(r.sparse for r in self.last_generation())
        spent = sum(r["planning_s"] + r["running_s"] for r in rows)
        planning = sum(r["planning_s"] for r in rows)
        line = (
            f"Attention of {self.transformer}: {sparse} of {len(rows)} calls sparse, "
            f"{100 * self.density:.0f} % of the attention matrix computed"
            f"{_SCORES[self.precision] if sparse else ''}; "
            f"{spent:.2f} s, of which {100 * planning / max(spent, 1e-9):.0f} % planning."
        )
        if self.rank is not None:
            line += f" Times and pictures are those of the heads of rank {self.rank[0]}."
        if not sparse:
            line += f" Nothing was skipped: {', '.join(sorted({r['reason'] for r in rows}))}."
        return line

    def along_steps(self) -> str:
        """Density along the newest generation's steps, a sign each, over layers and branches."""
        steps: dict[int, list[float]] = {}
        for r in self.rows():
            steps.setdefault(r["step"], []).append(r["density"])
        return "".join(_digit(steps.get(i)) for i in range(max(steps, default=-1) + 1))

    def lines(self) -> list[str]:
        """The newest generation for people: a table of layers, and density along the steps."""
        rows, lines = self.rows(), [self.headline()]
        if not any(r.sparse for r in self.last_generation()):
            return lines
        lines.append("  Density along the steps, tenths (# = all), mean over branches:")
        width = max(map(len, self.layers))
        for layer, name in enumerate(self.layers):
            of_layer = [r for r in rows if r["layer"] == layer]
            steps: dict[int, list[float]] = {}
            for r in of_layer:
                steps.setdefault(r["step"], []).append(r["density"])
            if not steps:
                continue
            last = max(r["step"] for r in rows)
            marks = "".join(_digit(steps.get(i)) for i in range(last + 1))
            mean = sum(r["density"] for r in of_layer) / len(of_layer)
            time_spent = sum(r["planning_s"] + r["running_s"] for r in of_layer)
            lines.append(f"  {name:<{width}}  {marks}  {100 * mean:3.0f} %  {time_spent:.2f} s")
        return lines

    def picture(self, path: str | os.PathLike[str], branch: str | None = None) -> Path:
        """Save the maps of the newest generation: a row per layer, a column per sparse step.

        White is kept, black is skipped; queries run down, keys to the right.

        Args:
            path: of the PNG file.
            branch: guidance branch; the first one by default.

        Raises:
            UsageError: nothing was sparse, there is no such branch, or the file cannot be
                written.
        """
        from PIL import Image, ImageDraw

        branches = list(dict.fromkeys(b for _, b, _ in self.maps))
        if not branches:
            raise UsageError(
                "no attention call of the newest generation was sparse, so no map can be drawn; "
                "run the pipeline first, or see in the report why attention stayed dense"
            )
        branch = branch or branches[0]
        if branch not in branches:
            raise UsageError(f"there is no branch {branch!r}; there are: {', '.join(branches)}")
        chosen = {(at, step): m for (at, b, step), m in self.maps.items() if b == branch}
        rows, columns = sorted({a for a, _ in chosen}), sorted({s for _, s in chosen})
        cell = _THUMBNAIL + 2
        left_margin, top_margin, legend = 64, 16, 18
        legend_width = left_margin + 6 * len(_LEGEND)
        height = top_margin + len(rows) * cell
        size = (height + legend, max(left_margin + len(columns) * cell, legend_width))
        sheet = torch.full(size, 96, dtype=torch.uint8)
        for (at, step), kept in chosen.items():
            picture = F.interpolate(kept[None, None].float(), (_THUMBNAIL, _THUMBNAIL))[0, 0]
            top, left = top_margin + rows.index(at) * cell, left_margin + columns.index(step) * cell
            sheet[top : top + _THUMBNAIL, left : left + _THUMBNAIL] = picture.round().byte().cpu()
        path = Path(path)
        image = Image.fromarray(sheet.numpy())
        draw = ImageDraw.Draw(image)
        for i, step in enumerate(columns):
            draw.text((left_margin + i * cell + 2, 2), f"step {step}", fill=255)
        for i, at in enumerate(rows):
            draw.text((4, top_margin + i * cell + cell // 2 - 6), f"layer {at}", fill=255)
        for i, shade in enumerate((255, 0)):
            left = 4 + 18 * i
            draw.rectangle((left, height + 4, left + 12, height + 14), fill=shade, outline=160)
        draw.text((left_margin - 20, height + 3), _LEGEND, fill=255)
        try:
            image.save(path)
        except (OSError, ValueError) as error:
            raise UsageError(
                f"cannot write the picture {path} ({error}); give a writable path that ends in .png"
            ) from None
        return path
