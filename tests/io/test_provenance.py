"""Where figures come from: the hash of weights, quantised and offloaded ones too."""

import pytest
import torch
from tiny import tiny_wan

from ditaccel.io.provenance import fingerprint_of
from ditaccel.sessions.tuned_for import weights_of


def quantised():
    quantization = pytest.importorskip("torchao.quantization")
    torch.manual_seed(0)
    pipe, _ = tiny_wan()
    quantization.quantize_(pipe.transformer, quantization.Int8WeightOnlyConfig())
    return pipe


def test_quantised_weights_have_a_hash_of_what_they_are_made_of():
    torch.manual_seed(0)
    plain, _ = tiny_wan()
    found = fingerprint_of(quantised())
    assert found == fingerprint_of(quantised()) != fingerprint_of(plain)


def test_weights_that_are_elsewhere_have_none():
    pipe, _ = tiny_wan()
    assert weights_of(pipe) == fingerprint_of(pipe)
    pipe.transformer.to("meta")
    assert weights_of(pipe) == ""
