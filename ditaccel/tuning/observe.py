"""Look at the attention of a pipeline while it runs: to calibrate, or to measure."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from ..attention.engine.planner import Planner
from ..config import AccelerationConfig
from ..core.transformers import transformers_of
from ..errors import UsageError
from ..pipelines import FamilyAdapter
from ..sessions.session import Session, session_of


@contextmanager
def observed(
    pipe: Any, planner: Planner, adapter: FamilyAdapter | None = None
) -> Iterator[Session]:
    """Show a planner every self-attention call within a `with` block.

    A `Watcher` changes nothing; what any other planner plans is carried out.

    Args:
        pipe: an unaccelerated pipeline.
        planner: is shown the calls.
        adapter: of the transformers; by default that of their family.

    Raises:
        UsageError: the pipeline is accelerated.
        UnsupportedError: no transformer of a known family, or its attention cannot be reached.
    """
    transformers, _ = transformers_of(pipe, adapter)
    if session_of(transformers) is not None:
        raise UsageError("this needs the dense pipeline; call ditaccel.restore(pipe) first")
    session = Session(pipe, transformers, AccelerationConfig(), planner=planner, adapter=adapter)
    try:
        yield session
    finally:
        session.restore()
