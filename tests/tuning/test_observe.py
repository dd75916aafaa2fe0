"""Watching leaves everything dense, sees every call, and is no reason to warn."""

import warnings

import pytest
import torch
from tiny import generate, tiny_wan

import ditaccel
from ditaccel.attention.engine.planner import Watcher
from ditaccel.tuning.observe import observed


class _Counter(Watcher):
    def __init__(self):
        self.layers = []

    def look(self, q, k, v, scale, context, state):
        self.layers.append(context.layer)


def test_watching_is_dense_and_silent():
    pipe, call = tiny_wan()
    dense = generate(pipe, call)
    watcher = _Counter()
    with warnings.catch_warnings(), observed(pipe, watcher):
        warnings.simplefilter("error")
        assert torch.equal(generate(pipe, call), dense)
        records = ditaccel.report(pipe).attention[0].records
    layers = len(pipe.transformer.blocks)
    assert watcher.layers == list(range(layers)) * (len(records) // layers) and watcher.layers
    assert {record.reason for record in records} == {"watched"}


def test_an_accelerated_pipeline_cannot_be_watched():
    pipe, _ = tiny_wan()
    with (
        ditaccel.accelerated(pipe, "taylorseer"),
        pytest.raises(ditaccel.UsageError, match="needs the dense pipeline"),
        observed(pipe, _Counter()),
    ):
        pass
