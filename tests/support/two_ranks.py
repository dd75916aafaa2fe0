"""One of two ranks that compute a tiny transformer together, by gloo on the CPU.

`main` runs in a process of its own, one per rank.
"""

from __future__ import annotations

import datetime
import multiprocessing
import os
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from tiny import FAMILIES, generate, tiny_flux, tiny_wan

import ditaccel
from ditaccel.attention.engine.runtime import AttentionRuntime
from ditaccel.core.ranks import Ranks

Elsewhere = Callable[[int], Any]


def build(name: str) -> tuple[Any, dict[str, Any]]:
    """`flux` or `wan`, of a size that two ranks can share."""
    pipe, call = {"flux": tiny_flux, "wan": tiny_wan}[name]()
    return pipe, {**call, "height": 64, "width": 64}


def _gathered(tensor: torch.Tensor, dim: int, group: Any) -> torch.Tensor:
    ranks = Ranks(group)
    sizes = ranks.sizes(tensor.shape[dim], tensor.device)
    return torch.cat(ranks.gathered(tensor, sizes, dim), dim)


def split_over_two(transformer: Any, rank: int, anything: bool = False) -> None:
    """What `enable_parallelism` does; on a CPU that itself divides by a count of 0 devices."""
    from diffusers import ContextParallelConfig
    from diffusers.hooks import context_parallel
    from diffusers.hooks.context_parallel import apply_context_parallel
    from diffusers.models._modeling_parallel import ParallelConfig
    from torch.distributed.device_mesh import init_device_mesh

    # gloo gathers parts of one size only
    context_parallel._all_gather_anything = _gathered
    config = ContextParallelConfig(ulysses_degree=2, ulysses_anything=anything)
    mesh = init_device_mesh("cpu", (1, 2), mesh_dim_names=("ring", "ulysses"))
    config.setup(rank, 2, torch.device("cpu"), mesh)
    both = ParallelConfig(context_parallel_config=config)
    for module in transformer.modules():
        processor = getattr(module, "processor", None)
        if hasattr(processor, "_parallel_config"):
            processor._parallel_config = both
    transformer._parallel_config = both
    apply_context_parallel(transformer, config, transformer._cp_plan)


def run(name: str, spec: str, order: str, rank: int) -> dict[str, Any]:
    """One generation, split before or after `accelerate`."""
    pipe, call = build(name)
    if order == "before":
        split_over_two(pipe.transformer, rank)
    if spec:
        ditaccel.accelerate(pipe, spec)
    if order == "after":
        split_over_two(pipe.transformer, rank)
    result = generate(pipe, call)
    again = generate(pipe, call)
    calls = [] if not spec else ditaccel.report(pipe).last_generation().calls
    if spec:
        ditaccel.restore(pipe)
    return {
        "result": result,
        "repeats": torch.equal(result, again),
        "actions": [c.action for c in calls],
        "errors": [c.error for c in calls],
        "dense": generate(pipe, call),
    }


@dataclass(frozen=True)
class AttentionJob:
    """One generation with an attention method.

    Attributes:
        model: a key of `SHAPES`.
        spec: of the method, and of a cache if wanted.
        heads: of the transformer.
        anything: whether parts may differ in size.
        order: whether the transformer is split "before" or "after" `accelerate`.
        compiled: whether blocks are compiled (without a backend that needs a compiler).
    """

    model: str
    spec: str
    heads: int = 4
    anything: bool = False
    order: str = "before"
    compiled: bool = False

    def build(self) -> tuple[Any, dict[str, Any]]:
        """The pipeline, with so many heads, and its call: 96 tokens or 99, and 6 or 5 of text."""
        pipe, call = FAMILIES[self.model]()
        torch.manual_seed(7)
        kind, config = type(pipe.transformer), dict(pipe.transformer.config)
        layers = {"num_layers": 2, "num_single_layers": 1}
        config |= {k: v for k, v in layers.items() if k in config}
        pipe.transformer = kind.from_config({**config, "num_attention_heads": self.heads}).eval()
        call = {**call, "num_inference_steps": 5, **SHAPES[self.model][self.anything]}
        if self.anything:
            # (the text of Wan is not in its sequence, and stays whole)
            shorter = {k: v[:, :5] for k, v in call.items() if k in _PER_TOKEN_OF_TEXT}
            call |= shorter if self.model != "wan" else {}
        return pipe, call

    def run(self, rank: int) -> dict[str, Any]:
        """On one of two ranks: the result, every attention call, and the rows of the report."""
        pipe, call = self.build()
        if self.order == "before":
            split_over_two(pipe.transformer, rank, self.anything)
        ditaccel.accelerate(pipe, self.spec)
        if self.order == "after":
            split_over_two(pipe.transformer, rank, self.anything)
        if self.compiled:
            pipe.transformer.compile_repeated_blocks(backend="eager", fullgraph=True)
        calls: list[dict[str, Any]] = []
        with exchanged_calls(lambda whole, *args: noted(calls, whole, *args)):
            result = generate(pipe, call)
        return {"result": result, "calls": calls, **told(pipe)}


# Sizes that two ranks share alike, and that they do not.
SHAPES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "flux": ({"height": 128, "width": 192}, {"height": 144, "width": 176}),
    "wan": (
        {"height": 64, "width": 96, "num_frames": 13},
        {"height": 48, "width": 176, "num_frames": 9},
    ),
    "qwen_image": ({"height": 128, "width": 192}, {"height": 144, "width": 176}),
}
_EMBEDS = ("prompt_embeds", "negative_prompt_embeds")
_PER_TOKEN_OF_TEXT = (*_EMBEDS, *(f"{name}_mask" for name in _EMBEDS))


@contextmanager
def exchanged_calls(instead: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Put `instead(whole, runtime, now, layer, dense, q, k, v, ...)` in place of whole calls."""
    whole = AttentionRuntime._one
    AttentionRuntime._one = lambda *args: instead(whole, *args)  # type: ignore[method-assign]
    try:
        yield
    finally:
        AttentionRuntime._one = whole  # type: ignore[method-assign]


def noted(
    calls: list[dict[str, Any]], whole: Any, runtime: Any, now: Any, layer: int, dense: Any,
    q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, mask: Any, *rest: Any,
) -> torch.Tensor:  # fmt: skip
    """Write down one call on whole sequences, and make it."""
    out: torch.Tensor = whole(runtime, now, layer, dense, q, k, v, mask, *rest)
    at = now.step.index, now.step.branch, layer
    tensors = {"q": q, "k": k, "v": v, "out": out}
    kept = {name: x.contiguous().clone() for name, x in tensors.items()}
    calls.append({"at": at, "mask": None if mask is None else mask.clone(), **kept})
    return out


def told(pipe: Any) -> dict[str, Any]:
    """What the report tells of the newest generation, without times; and what `restore` leaves."""
    report = ditaccel.report(pipe)
    rows = [
        {name: value for name, value in row.items() if not name.endswith("_s")}
        for row in report.attention[0].rows()
    ]
    headline = report.attention[0].headline()
    actions = [call.action for call in report.last_generation().calls]
    ditaccel.restore(pipe)
    return {"rows": rows, "actions": actions, "headline": headline}


def main(
    rank: int, jobs: Sequence[tuple[str, str, str] | AttentionJob | Elsewhere], folder: Path
) -> None:
    """Join the other rank, do the jobs, and write `folder/RANK.pt`.

    Args:
        rank: 0 or 1.
        jobs: model, spec, and whether the transformer is split "before" or "after" `accelerate`;
            or an `AttentionJob`, or what is to be called with the rank.
        folder: where the ranks meet.
    """
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    dist.init_process_group(
        "gloo",
        init_method=f"file://{folder}/rendezvous",
        rank=rank,
        world_size=2,
        timeout=datetime.timedelta(minutes=20),
    )
    torch.save(
        [
            job.run(rank) if isinstance(job, AttentionJob)
            else run(*job, rank) if isinstance(job, tuple)
            else job(rank)
            for job in jobs
        ],
        folder / f"{rank}.pt",
    )  # fmt: skip
    dist.destroy_process_group()


def on_both(jobs: Sequence[Any], folder: Path) -> list[list[Any]]:
    """What each of two ranks makes of the jobs; see `main`."""
    fork = multiprocessing.get_context("fork")  # (nothing has to be imported again)
    ranks = [fork.Process(target=main, args=(r, jobs, folder)) for r in range(2)]
    try:
        for rank in ranks:
            rank.start()
        for rank in ranks:
            rank.join()
            assert rank.exitcode == 0, "its traceback is in the captured stderr"
    finally:
        for rank in ranks:
            rank.kill()
    return [torch.load(folder / f"{rank}.pt") for rank in range(2)]
