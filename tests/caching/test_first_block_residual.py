"""The first block's residual decides, the tail is reused."""

from inspection import computed
from tiny import generate, tiny_wan

import ditaccel


def test_first_block_residual_reuses_the_tail():
    pipe, call = tiny_wan()
    config = ditaccel.FirstBlockResidualConfig(threshold=1e9)
    with ditaccel.accelerated(pipe, cache=config):
        generate(pipe, call)
        assert computed(pipe, "cond") == [0]
