"""A worker that serves pictures, each request with the quality that it asks for.

pip install "ditaccel[serve]"
python samples/recipes/serving.py
curl -X POST localhost:8000/generate -H 'Content-Type: application/json' \\
    -d '{"prompt": "a red circle", "quality": "fast"}' --output picture.png

Putting a setting on takes milliseconds, since nothing is copied: each request gets its own. One
transformer serves one request at a time; more GPUs need more workers.
"""

from __future__ import annotations

import io
import threading
from contextlib import nullcontext
from typing import Any, Literal

import shared
import torch
from diffusers import FluxPipeline

import ditaccel

Quality = Literal["dense", "safe", "balanced", "fast"]


class Worker:
    """One pipeline, one request at a time.

    Args:
        pipe: a pipeline.
        call: arguments of every call.
    """

    def __init__(self, pipe: Any, call: dict[str, Any]) -> None:
        self.pipe, self.call = pipe, call
        self.lock = threading.Lock()

    def generate(
        self, prompt: str, quality: Quality = "balanced", seed: int = 0
    ) -> tuple[Any, float]:
        """A picture, and the share of the transformer's work that was computed for it."""
        call = {**self.call, "prompt": prompt, "generator": torch.Generator().manual_seed(seed)}
        with self.lock:
            dense = quality == "dense"
            with nullcontext() if dense else ditaccel.accelerated(self.pipe, quality):
                image = self.pipe(**call).images[0]
                share = 1.0 if dense else ditaccel.report(self.pipe).computed_share
        return image, share


def application(worker: Worker) -> Any:
    """The FastAPI application of a worker."""
    from fastapi import FastAPI, Response
    from pydantic import BaseModel

    class Request(BaseModel):
        prompt: str
        quality: Quality = "balanced"
        seed: int = 0

    app = FastAPI()

    def generate(request: Request) -> Response:
        image, share = worker.generate(request.prompt, request.quality, request.seed)
        file = io.BytesIO()
        image.save(file, "png")
        headers = {"X-Computed-Share": f"{share:.2f}"}
        return Response(file.getvalue(), media_type="image/png", headers=headers)

    # (named here: annotations of a local class are not found by FastAPI as text)
    generate.__annotations__ = {"request": Request, "return": Response}
    # not `async`: FastAPI runs it on a thread, so that the server answers while the GPU works
    app.post("/generate")(generate)
    return app


if __name__ == "__main__":
    import uvicorn

    pipe, call, _ = shared.opened(FluxPipeline)
    uvicorn.run(application(Worker(pipe, call)), port=8000)
