"""Attention calls of a dense run, recorded on the disk: one file per call."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ditaccel.attention.engine.planner import LayerContext, State, Watcher
from ditaccel.core.denoising.tracker import DenoisingStep
from ditaccel.errors import UsageError
from ditaccel.io.files import append_line, read_json, read_lines, write_atomically, write_json

ASKED, INDEX, FOLDER = "recorded.json", "calls.jsonl", "records"
_STEP = ("generation", "index", "branch", "timestep", "sigma", "total")
# Of a context, what is plain data; calls are recorded on one rank, which has all heads.
_CONTEXT = tuple(
    f.name for f in fields(LayerContext) if f.name not in ("step", "key_mask", "share")
)
# Scores of dense attention in float64 that are held at once.
_CHUNK = 1 << 24


@dataclass(frozen=True, eq=False)
class Call:
    """One recorded attention call, and what dense attention gives for it.

    Attributes:
        q: `(B, H, L, D)`.
        k: `(B, Hkv, L, D)`.
        v: like k.
        scale: of the softmax.
        context: where it was.
        number: among the calls of its layer in one transformer call.
        dense: output in float64, like q.
        lse: log-sum-exp of its scores, float64 `(B, H, L)`.
    """

    q: Tensor
    k: Tensor
    v: Tensor
    scale: float
    context: LayerContext
    number: int
    dense: Tensor
    lse: Tensor


def dense_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, key_mask: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Attention in float64, with the log-sum-exp of the scores `(B, H, L)`."""
    group = q.shape[1] // k.shape[1]
    keys, values = (x.double().repeat_interleave(group, 1) for x in (k, v))
    rows = max(1, _CHUNK // (q.shape[0] * q.shape[1] * k.shape[2]))
    outputs, totals = [], []
    for part in q.split(rows, 2):
        scores = part.double() @ keys.mT * scale
        if key_mask is not None:
            scores.masked_fill_(~key_mask[:, None, None], -torch.inf)
        total = scores.logsumexp(-1)
        outputs.append((scores - total[..., None]).exp() @ values)
        totals.append(total)
    return torch.cat(outputs, 2), torch.cat(totals, 2)


def some_heads(q: Tensor, k: Tensor, most: int | None) -> tuple[list[int], list[int]]:
    """Numbers of query heads and of key heads, at most so many, spread evenly.

    Heads that share keys stay together, so one group of them is the least.
    """
    heads, key_heads = q.shape[1], k.shape[1]
    group = heads // key_heads
    if most is None or most >= heads:
        return list(range(heads)), list(range(key_heads))
    count = max(1, most // group)
    keys = [(2 * i + 1) * key_heads // (2 * count) for i in range(count)]
    return [key * group + i for key in keys for i in range(group)], keys


class AllSeenError(Exception):
    """The last step to be recorded is over: the rest of the run is not needed."""


class Recorder(Watcher):
    """Writes the calls of some steps and layers to a folder.

    Args:
        folder: of the files.
        steps: to record; None for six in a row, from 40 % of the run on.
        layers: to record; None for four, spread evenly.
        heads: at most so many; None for all.
    """

    def __init__(
        self,
        folder: Path,
        steps: Sequence[int] | None,
        layers: Sequence[int] | None,
        heads: int | None,
    ) -> None:
        self._folder, self._heads = folder, heads
        self._steps, self._layers = steps, layers
        self._calls: Counter[tuple[Any, ...]] = Counter()
        self.seen = 0
        self.size = 0

    def _chosen_steps(self, total: int | None) -> Sequence[int]:
        if self._steps is None:
            first = int(0.4 * total) if total else 0
            return range(first, min(first + 6, total) if total else first + 6)
        if total is not None and max(self._steps) >= total:
            raise UsageError(
                f"names step {max(self._steps)}, but the run has {total}: give steps from 0 to "
                f"{total - 1}",
                "at",
            )
        return self._steps

    def _chosen_layers(self, layers: int) -> Sequence[int]:
        if self._layers is None:
            count = min(4, layers)
            return sorted({(2 * i + 1) * layers // (2 * count) for i in range(count)})
        if max(self._layers) >= layers:
            raise UsageError(
                f"names layer {max(self._layers)}, but the transformer has {layers} attention "
                f"layers: give numbers from 0 to {layers - 1}",
                "layers",
            )
        return self._layers

    @torch.no_grad()
    def look(
        self, q: Tensor, k: Tensor, v: Tensor, scale: float, context: LayerContext, state: State
    ) -> None:
        """Write the call down, if it is one of those."""
        steps, layers = (
            self._chosen_steps(context.step.total),
            self._chosen_layers(context.layers),
        )
        if context.step.index > max(steps):
            raise AllSeenError
        if context.step.index not in steps or context.layer not in layers:
            return
        place = (context.component, context.step.generation, context.step.index)
        key = (*place, context.step.branch, context.layer)
        heads, key_heads = some_heads(q, k, self._heads)
        tensors = {"q": q[:, heads], "k": k[:, key_heads], "v": v[:, key_heads]}
        if context.key_mask is not None:
            tensors["key_mask"] = context.key_mask
        name = f"{self.seen:06d}.safetensors"
        save(self._folder / name, tensors)
        line = {name: getattr(context, name) for name in _CONTEXT}
        line |= {"step": {name: getattr(context.step, name) for name in _STEP}}
        line |= {"file": name, "scale": scale, "number": self._calls[key], "heads": heads}
        append_line(self._folder / INDEX, line)
        self._calls[key] += 1
        self.seen += 1
        self.size += sum(x.numel() * x.element_size() for x in tensors.values())


def save(path: Path, tensors: dict[str, Tensor]) -> None:
    """Write tensors as one file, as a whole or not at all."""
    from safetensors.torch import save as to_bytes

    content = to_bytes({name: x.detach().cpu().contiguous() for name, x in tensors.items()})
    write_atomically(path, lambda file: file.write(content))


def record(
    folder: Path,
    asked: dict[str, Any],
    make: Callable[[Path], dict[str, Any]],
) -> Records:
    """The records of a folder, made first where they are not there yet.

    Args:
        folder: of the bench.
        asked: what is to be recorded, plain data.
        make: records into a folder; what it returns is kept with `asked`.

    Raises:
        UsageError: the folder holds records of something else.
    """
    path = folder / ASKED
    if path.exists():
        found = read_json(path)
        if found.get("asked") != asked:
            other = next((k for k in asked if found.get("asked", {}).get(k) != asked[k]), "model")
            raise UsageError(
                f"{folder} holds records that were made with another {other}; name a new folder",
                "out",
            )
        return Records(folder / FOLDER, found)
    # Without the file that is written last they are those of a run that was killed.
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
    found = {"asked": asked, **make(folder / FOLDER)}
    write_json(path, found)
    return Records(folder / FOLDER, found)


class Records:
    """Recorded calls, in the order in which they were made; each is read when it is needed.

    Args:
        folder: of the files.
        about: what was recorded.
    """

    def __init__(self, folder: Path, about: dict[str, Any]) -> None:
        self._folder = folder
        self.about = about
        self._lines = read_lines(folder / INDEX)
        self._device = torch.device(about["device"])

    def __len__(self) -> int:
        return len(self._lines)

    def __iter__(self) -> Iterator[Call]:
        return (self.read(i) for i in range(len(self)))

    def layer_names(self) -> list[tuple[str, int]]:
        """Component and number of each recorded layer."""
        return sorted({(line["component"], line["layer"]) for line in self._lines})

    def read(self, number: int) -> Call:
        """One call; dense attention in float64 is computed once, and kept beside it."""
        from safetensors.torch import load_file

        line = self._lines[number]
        path = self._folder / line["file"]
        try:
            found = load_file(path, device=str(self._device))
        except (OSError, ValueError) as error:
            raise UsageError(f"{path} cannot be read ({error}); name a new folder", "out") from None
        mask = found.pop("key_mask", None)
        place: dict[str, Any] = {
            name: tuple(line[name]) if isinstance(line[name], list) else line[name]
            for name in _CONTEXT
            if name in line
        }
        context = LayerContext(step=DenoisingStep(**line["step"]), key_mask=mask, **place)
        q, k, v = found["q"], found["k"], found["v"]
        kept = path.with_suffix(".dense")
        if not kept.exists():
            out, lse = dense_attention(q, k, v, line["scale"], mask)
            save(kept, {"out": out, "lse": lse})
        dense = load_file(kept, device=str(self._device))
        return Call(q, k, v, line["scale"], context, line["number"], dense["out"], dense["lse"])
