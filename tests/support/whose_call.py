"""Random interleavings of denoising loops on one transformer, for `test_whose_call.py`.

A case accelerates one tiny pipeline and lets several owners use its transformer: the pipeline, a
`copy.copy` with a scheduler of its own, one made of its components, one by `from_pipe`, and loops
written by hand, with and without a scheduler, with windows, and with guidance on some steps. Runs
break off, nest, and take turns with each other, in one thread or several. Whatever runs to its end
must equal the same request on a fresh pipeline that nothing else ever used.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import random
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from loops_by_hand import (
    Broken,
    Request,
    Turns,
    direct,
    image_ids,
    plain_loop,
    scheduled_loop,
    timestep,
)
from tiny import tiny_dit, tiny_flux, tiny_wan

import ditaccel

_TILES = "q_tile=16,k_tile=16,min_tokens=0,dense_steps=0,break_even=1"
SPECS = (
    "taylorseer:interval=3",
    "taylorseer:interval=2,granularity=last_block,target=output",
    "confidence_gated_taylor:threshold=1e9,warmup=2",
    "adaptive_taylor:tolerance=0.05,warmup=2",
    "adaptive_taylor:tolerance=1e9,guidance=difference,warmup=2,max_interval=3",
    "reuse:interval=2",
    f"lite_attention:threshold=-0.02,skip_now=true,{_TILES}",
    f"reuse:interval=3 & lite_attention:threshold=-0.02,{_TILES}",
)
FAMILIES: dict[str, Callable[[], Any]] = {
    "dit": lambda: tiny_dit(2),
    "wan": lambda: tiny_wan(2),
    "flux": lambda: tiny_flux(1, 2),
}


def _schedulers(family: str) -> list[Callable[[], Any]]:
    from diffusers import (
        DDIMScheduler,
        FlowMatchEulerDiscreteScheduler,
        PNDMScheduler,
        UniPCMultistepScheduler,
    )

    if family == "dit":
        pndm = functools.partial(PNDMScheduler, skip_prk_steps=True)
        return [DDIMScheduler, functools.partial(DDIMScheduler, timestep_spacing="trailing"), pndm]
    if family == "wan":
        unipc = functools.partial(
            UniPCMultistepScheduler,
            prediction_type="flow_prediction",
            use_flow_sigmas=True,
            flow_shift=3.0,
        )
        return [functools.partial(FlowMatchEulerDiscreteScheduler, shift=s) for s in (3.0, 9.0)] + [
            unipc
        ]
    return [functools.partial(FlowMatchEulerDiscreteScheduler, shift=s) for s in (1.0, 4.0)]


class Bench:
    """One accelerated tiny pipeline and all that shares its transformer."""

    def __init__(self, family: str, spec: str) -> None:
        self.family, self.spec = family, spec
        self.pipe, self.call = FAMILIES[family]()
        self.call.pop("num_inference_steps")
        self.call["output_type"] = "latent" if family != "dit" else "np"
        if family == "wan":
            self.call.update(height=64, width=64)
        ditaccel.accelerate(self.pipe, spec)
        self.transformer = self.pipe.transformer

    # -- pipelines --

    def pipeline(self, request: Request) -> Any:
        """The pipeline that serves a request, with a scheduler of its own."""
        scheduler = _schedulers(self.family)[request.scheduler]()
        if request.owner == "base":
            return self.pipe
        if request.owner == "replaced":
            self.pipe.scheduler = scheduler
            return self.pipe
        if request.owner == "copy":
            made = copy.copy(self.pipe)
            made.scheduler = scheduler
        elif request.owner == "components":
            parts = {**self.pipe.components, "scheduler": scheduler}
            made = type(self.pipe)(**parts)
        else:
            made = type(self.pipe).from_pipe(self.pipe)
            made.scheduler = scheduler
        made.set_progress_bar_config(disable=True)
        return made

    def arguments(self, request: Request) -> dict[str, Any]:
        """Call arguments of a pipeline."""
        made = {**self.call, "num_inference_steps": request.steps}
        if self.family == "dit":
            made["class_labels"] = [1 + request.prompt, 2 + request.prompt]
        else:
            for name in [n for n in made if n.endswith("embeds")]:
                made[name] = self.embeds(name, request.prompt)
        made["generator"] = torch.Generator().manual_seed(request.seed)
        return made

    @functools.cache  # noqa: B019
    def embeds(self, name: str, prompt: int) -> torch.Tensor:
        """Conditioning, the same tensor for every run of a prompt."""
        return self.call[name] * (1.0 - 0.3 * prompt)

    def run_pipeline(
        self, request: Request, pipe: Any, at_step: Callable[[int], None] | None
    ) -> torch.Tensor:
        """Run a pipeline; `at_step` is called inside each scheduler step."""
        scheduler = pipe.scheduler
        step, count = scheduler.step, iter(range(1000))

        def stepping(*args: Any, **kwargs: Any) -> Any:
            if at_step is not None:
                at_step(next(count))
            return step(*args, **kwargs)

        scheduler.step = stepping
        try:
            return torch.as_tensor(pipe(**self.arguments(request))[0])
        finally:
            del scheduler.step

    # -- loops by hand --

    def conditions(self, request: Request) -> list[dict[str, Any]]:
        """Keyword arguments of the transformer for `cond` and `uncond`."""
        if self.family == "dit":
            return [
                {"class_labels": self.labels(1 + request.prompt)},
                {"class_labels": self.labels(1000)},
            ]
        cond = self.embeds("prompt_embeds", request.prompt)
        uncond = self.embeds("negative_prompt_embeds", request.prompt)
        if self.family == "wan":
            return [{"encoder_hidden_states": e} for e in (cond, uncond)]
        ids = {"txt_ids": torch.zeros(6, 3), "img_ids": image_ids()}
        pooled = [
            self.embeds(n, request.prompt)
            for n in ("pooled_prompt_embeds", "negative_pooled_prompt_embeds")
        ]
        return [
            {"encoder_hidden_states": e, "pooled_projections": p, **ids}
            for e, p in zip((cond, uncond), pooled, strict=True)
        ]

    @functools.cache  # noqa: B019
    def labels(self, label: int) -> torch.Tensor:
        """A class label as the transformer takes it."""
        return torch.tensor([label])

    @functools.cache  # noqa: B019
    def latents(self, seed: int, windows: int) -> torch.Tensor:
        """Where a loop by hand begins; windows lie side by side."""
        shape = {"dit": (1, 4, 8, 8), "wan": (1, 4, 2, 8, 8), "flux": (1, 4, 16)}[self.family]
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(max(windows, 1), *shape, generator=generator)

    def loop(self, request: Request) -> Iterator[torch.Tensor | None]:
        """A denoising loop by hand, on a generator: pauses before each transformer call."""
        if request.owner == "plain":
            return plain_loop(self.transformer, self, request)
        scheduler = _schedulers(self.family)[request.scheduler]()
        return scheduled_loop(self.transformer, scheduler, self, request)

    def direct(self, request: Request, stop: int | None) -> torch.Tensor:
        """The same by an ordinary function, left after `stop` transformer calls."""
        return direct(self.transformer, self, request, stop)


PIPELINES = ("base", "copy", "components", "from_pipe", "replaced")


def draw(rng: random.Random, family: str, spec: str, owner: str | None = None) -> Request:
    """A request at random, out of few, so that references can be shared."""
    needs_sigmas = "adaptive" in spec
    owners = [*PIPELINES, "loop", "loop", *([] if needs_sigmas else ["plain", "plain"])]
    chosen = owner or rng.choice(owners)
    made = Request(
        chosen,
        steps=rng.choice((5, 6)),
        seed=rng.randrange(2),
        prompt=rng.randrange(2),
    )
    if chosen in PIPELINES:
        kinds = len(_schedulers(family)) - needs_sigmas * (family == "dit")
        return made if chosen == "base" else replace(made, scheduler=rng.randrange(kinds))
    return replace(
        made,
        scheduler=rng.randrange(2) if chosen == "loop" else 0,
        windows=rng.choice((0, 0, 0, 2, 5)),
        views=rng.random() < 0.5,
        guidance=rng.choice(("all", "second", "early")),
        swapped=rng.random() < 0.5,
    )


def alone(family: str, spec: str, request: Request, known: dict[Any, torch.Tensor]) -> torch.Tensor:
    """What a fresh pipeline gives, on which nothing else ever ran."""
    key = (family, spec, request)
    if key not in known:
        bench = Bench(family, spec)
        known[key] = _to_end(bench, request)
    return known[key]


def _to_end(
    bench: Bench, request: Request, between: Callable[[int], None] | None = None
) -> torch.Tensor:
    if request.owner in PIPELINES:
        return bench.run_pipeline(request, bench.pipeline(request), between)
    if request.owner == "plain" and between is None:
        return bench.direct(request, None)
    loop, count = bench.loop(request), 0
    while (result := next(loop)) is None:
        if between is not None:
            between(count)
        count += 1
    return result


COMBINATIONS = tuple(
    ("wan" if "lite" in spec else list(FAMILIES)[i % 3], spec)
    for i, spec in enumerate((*SPECS, *SPECS[:2]))
)


@functools.cache
def pool(family: str, spec: str) -> tuple[Request, ...]:
    """Some requests of each owner: few, so that references serve many cases."""
    rng = random.Random(f"{family} {spec}")
    owners = ["base", "copy", "components", "from_pipe", "replaced", *["loop"] * 4]
    owners += [] if "adaptive" in spec else ["plain"] * 4
    return tuple(draw(rng, family, spec, owner) for owner in owners)


class Case:
    """One random case; `run` raises AssertionError where an output is another one than alone.

    Args:
        seed: of everything that is drawn.
        known: references so far.
        combination: index into `COMBINATIONS`, whose requests come from a pool; None draws all.
    """

    def __init__(
        self, seed: int, known: dict[Any, torch.Tensor], combination: int | None = None
    ) -> None:
        self.rng = random.Random(seed)
        self.family = self.rng.choice(list(FAMILIES))
        self.spec = self.rng.choice(SPECS)
        self.pool: tuple[Request, ...] = ()
        if combination is not None:
            self.family, self.spec = COMBINATIONS[combination]
            self.pool = pool(self.family, self.spec)
        self.known = known
        self.log: list[str] = []
        self.bench = Bench(self.family, self.spec)

    def run(self) -> None:
        """Some events, each followed by the check of what it gave."""
        events = (self.plain, self.plain, self.broken, self.nested, self.in_turn, self.threads)
        for _ in range(self.rng.randint(1, 3)):
            event = self.rng.choice((*events, self.trained, self.reset))
            self.log.append(event.__name__)
            event()
        self.log.append("last")
        self.plain()

    def draw(self, owner: str | None = None) -> Request:
        if self.pool:
            fits = [r for r in self.pool if owner in (None, r.owner)]
            request = self.rng.choice(fits)
        else:
            request = draw(self.rng, self.family, self.spec, owner)
        if request.owner == "base" and not isinstance(
            self.bench.pipe.scheduler, _kind(_schedulers(self.family)[0])
        ):
            request = replace(request, owner="replaced")
        elif request.owner == "base":
            # another event may have put in another one of the same class
            self.bench.pipe.scheduler = _schedulers(self.family)[0]()
        self.log.append(f"  {request}")
        return request

    def check(self, request: Request, result: torch.Tensor) -> None:
        expected = alone(self.family, self.spec, request, self.known)
        assert torch.equal(result, expected), "\n".join(
            [f"{self.family} {self.spec}", *self.log, f"differs: {request}"]
        )

    # -- events --

    def plain(self) -> None:
        request = self.draw()
        self.check(request, _to_end(self.bench, request))

    def broken(self) -> None:
        """Left by an exception, an interrupt, or for good, at any place."""
        request = self.draw()
        place = self.rng.choice((0, 0, 1, 1, 2, 3, 4))
        self.log.append(f"  left at {place}")
        if request.owner in PIPELINES:
            pipe = self.bench.pipeline(request)
            how = self.rng.choice(("raise", "interrupt", "inside"))

            def leave(count: int) -> None:
                if count == place and how == "raise":
                    raise Broken
                if count == place and how == "interrupt":
                    pipe._interrupt = True

            with contextlib.suppress(Broken), self.exploding(place if how == "inside" else None):
                self.bench.run_pipeline(request, pipe, leave)
            return
        if request.owner == "plain" and self.rng.random() < 0.7:
            with contextlib.suppress(Broken):
                self.bench.direct(request, place + 1)
            return
        loop = self.bench.loop(request)
        for _ in range(place + 2):
            next(loop, None)

    @contextlib.contextmanager
    def exploding(self, call: int | None) -> Iterator[None]:
        """The transformer raises in a call."""
        if call is None:
            yield
            return
        count = iter(range(10_000))

        def explode(module: Any, args: Any) -> None:
            if next(count) == call:
                raise Broken

        handle = self.bench.transformer.register_forward_pre_hook(explode)
        try:
            yield
        finally:
            handle.remove()

    def nested(self) -> None:
        """Another run in the middle of a run."""
        outer = self.draw(self.rng.choice(("copy", "loop")))
        inner = self.draw(self.rng.choice(("components", "loop", "copy")))
        place = self.rng.randrange(4)

        def between(count: int) -> None:
            if count == place:
                self.check(inner, _to_end(self.bench, inner))

        self.check(outer, _to_end(self.bench, outer, between))

    def in_turn(self) -> None:
        """Loops on generators, that take turns in one thread."""
        requests = [self.draw("loop") for _ in range(2)]
        loops = [(request, self.bench.loop(request)) for request in requests]
        while loops:
            place = self.rng.randrange(len(loops))
            request, loop = loops[place]
            result = next(loop)
            if result is not None:
                self.check(request, result)
                del loops[place]

    def threads(self) -> None:
        """Owners in threads that take turns at any transformer call or scheduler step."""
        owners = ("copy", "components", "loop")
        requests = [self.draw(self.rng.choice(owners)) for _ in range(self.rng.choice((2, 3)))]
        pipes = [self.bench.pipeline(r) if r.owner in PIPELINES else None for r in requests]
        turns = Turns(self.rng, list(range(len(requests))))
        results: dict[int, Any] = {}

        def work(name: int) -> None:
            request, pipe = requests[name], pipes[name]
            turns.begin(name)
            try:
                if pipe is not None:
                    handle = lambda count: turns.wait(name)  # noqa: E731
                    results[name] = self.bench.run_pipeline(request, pipe, handle)
                else:
                    results[name] = _to_end(self.bench, request, lambda count: turns.wait(name))
            except BaseException as error:
                results[name] = error
            finally:
                turns.leave(name)

        workers = [threading.Thread(target=work, args=(i,)) for i in range(len(requests))]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join(120)
            assert not worker.is_alive(), "a thread hangs"
        for name, request in enumerate(requests):
            if isinstance(results[name], BaseException):
                raise results[name]
            self.check(request, results[name])

    def trained(self) -> None:
        """Calls with gradients, at timesteps drawn at random: dense."""
        request = Request("plain")
        condition = self.bench.conditions(request)[0]
        x = self.bench.latents(7, 0)[0]
        for _ in range(3):
            t = timestep(self.bench, self.rng.randrange(1, 999))
            given = {"timestep": t, "return_dict": False, **condition}
            seen = self.bench.transformer(x, **given)[0]
            if "attention" not in self.spec:
                with torch.enable_grad():
                    again = copy.deepcopy(self.bench.transformer)(x, **given)[0]
                assert torch.equal(seen, again), "\n".join([*self.log, "a forecast in training"])

    def reset(self) -> None:
        """A user frees what there is."""
        ditaccel.reset(self.bench.pipe)


def _kind(make: Any) -> type:
    kind: type = make.func if isinstance(make, functools.partial) else make
    return kind
