"""Sparse calls beside dense ones: the run stays dense, and errors are those of single calls."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from inspection import traces
from tiny import generate, tiny_wan

import ditaccel
from ditaccel import SolConfig
from ditaccel.core.transformers import transformers_of
from ditaccel.tuning.joint.modes import AttentionMap
from ditaccel.tuning.joint.recording import record_modes
from ditaccel.tuning.recording import record


def small_wan():
    """4 x 6 x 6 tokens, which are nine tiles."""
    pipe, call = tiny_wan(layers=2)
    return pipe, {**call, "height": 96, "width": 96, "num_frames": 13, "num_inference_steps": 5}


SOL = replace(SolConfig.examples()[0].skipping, rest="nothing")


def test_the_run_is_dense_and_the_errors_are_those_of_its_calls():
    pipe, call = small_wan()
    dense, clean = generate(pipe, call), traces(pipe)
    transformers, adapter = transformers_of(pipe)
    _, plain = record(pipe, transformers, adapter, lambda: generate(pipe, call), 10**9)
    exact, sparse = replace(SOL, tau=-1e6), replace(SOL, tau=0.5)
    run = lambda: generate(pipe, call)  # noqa: E731
    frames, recording, seen = record_modes(pipe, None, run, 10**9, [exact, sparse])
    assert torch.equal(frames, dense)
    assert traces(pipe) == clean and not pipe.transformer._forward_hooks
    steps = len(recording.steps)
    assert [s.index for s in recording.steps] == [s.index for s in plain.steps]
    assert np.allclose(recording.first, plain.first) and np.allclose(recording.along, plain.along)
    assert seen.gram.shape == (3 * steps, 3 * steps)
    assert np.allclose(seen.gram[:steps, :steps], plain.first.mean(0))
    own = np.diag(seen.gram)
    assert (own[steps : 2 * steps] < 1e-9 * own[:steps]).all()
    assert (own[2 * steps :] > 1e-6 * own[:steps]).all()
    assert seen.density[0] == 1.0 and 0 < seen.density[1] < 1
    assert len(seen.seconds) == 3 and all(s > 0 for s in seen.seconds)


def test_an_error_is_what_one_sparse_step_changes_in_the_guided_output():
    pipe, call = small_wan()
    sparse = replace(SOL, tau=0.5)
    _, recording, seen = record_modes(pipe, None, lambda: generate(pipe, call), 10**9, [sparse])
    total, given = len(recording.steps), {}

    def watched(key):
        step = type(pipe.scheduler).step.__get__(pipe.scheduler)

        def stepped(output, *args, **kwargs):
            given.setdefault(key, []).append(output.double())
            return step(output, *args, **kwargs)

        pipe.scheduler.step = stepped
        try:
            generate(pipe, call)
        finally:
            del pipe.scheduler.step

    watched("dense")
    attention = AttentionMap.of(sparse, (0.5,))
    modes = (0, 0, 0, 1, *(0,) * (total - 4))
    config = attention.along(tuple(range(total)), modes, total)
    with ditaccel.accelerated(pipe, config):
        watched("sparse")
    changed = (given["sparse"][3] - given["dense"][3]).square().mean()
    assert torch.equal(given["sparse"][2], given["dense"][2])
    assert float(changed) == pytest.approx(seen.gram[total + 3, total + 3], rel=1e-3)
