"""Permutations in plain torch: whole tokens are copied, head by head, on a CPU."""

from __future__ import annotations

from torch import Tensor

from .call import PermuteCall


def why_not(call: PermuteCall) -> str | None:
    """This backend runs everywhere."""
    return None


def run(call: PermuteCall) -> Tensor:
    """Copy each token to its place."""
    if call.x.device.type != "cpu":
        place = call.order.long()[..., None].expand(call.x.shape)
        if call.inverse:
            return call.out.scatter_(2, place, call.x)
        return call.out.copy_(call.x.gather(2, place))
    for b in range(call.x.shape[0]):
        for h in range(call.x.shape[1]):
            x, order, out = call.x[b, h], call.order[b, h], call.out[b, h]
            if call.inverse:
                out.index_copy_(0, order.long(), x)
            else:
                out.copy_(x.index_select(0, order))
    return call.out
