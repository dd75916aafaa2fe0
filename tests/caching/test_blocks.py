"""What stands for the outputs of blocks that are skipped."""

import torch

from ditaccel.caching.engine.blocks import placeholder


def test_a_placeholder_is_made_once():
    one, two = torch.zeros(2, 3), torch.zeros(4, dtype=torch.bfloat16)
    first = placeholder((one, two))
    assert [(p.shape, p.dtype) for p in first] == [(t.shape, t.dtype) for t in (one, two)]
    again = placeholder((one, two), first)
    assert again[0] is first[0] and again[1] is first[1]
    other = placeholder((torch.zeros(5), two), first)  # the next batch is of another size
    assert other[0].shape == (5,) and other[1] is first[1]
    assert placeholder(one, first).shape == one.shape
