"""Arguments by name, and samples that come as lists, seen as one tensor."""

import pytest
import torch
from torch import nn

import ditaccel
from ditaccel.core.calls import Arguments, as_tensor
from ditaccel.core.outputs import form_of, tensors_of, with_tensors


class Transformer(nn.Module):
    def forward(self, x, t, cap_feats, return_dict=True):
        return x, t, cap_feats, return_dict


def test_arguments_by_position_by_name_and_left_out():
    arguments = Arguments(Transformer())
    assert arguments.get("t", (1, 2), {"cap_feats": 3}) == 2
    assert arguments.get("cap_feats", (1, 2), {"cap_feats": 3}) == 3
    assert arguments.get("return_dict", (1, 2, 3), {}, True) is True
    assert arguments.get("unknown", (1,), {}) is None


def test_a_forward_that_hands_on_whatever_comes_hides_no_name():
    transformer = Transformer()
    own = transformer.forward
    transformer.forward = lambda *args, **kwargs: own(*args, **kwargs)
    arguments = Arguments(transformer)
    assert arguments.get("t", (1, 2), {}) == 2
    assert arguments.named((1, 2, 3), {}) == {"x": 1, "t": 2, "cap_feats": 3}


def test_lists_become_one_tensor_and_go_back_as_lists():
    items = [torch.full((4, 1, 2), float(i)) for i in range(3)]
    joint = as_tensor(items)
    assert joint.shape == (3, 4, 1, 2) and as_tensor(joint) is joint
    nested = [[torch.zeros(4, 1, 9), item] for item in items]  # condition images, then the latents
    assert torch.equal(as_tensor(nested), joint)
    output = with_tensors((items, "more"), [joint + 1])
    assert isinstance(output[0], list) and output[1] == "more"
    assert torch.equal(tensors_of(output)[0], joint + 1)
    assert with_tensors((joint,), [items[0]])[0] is items[0]
    kept = form_of((items,))([joint * 2])
    assert isinstance(kept[0], list) and torch.equal(as_tensor(kept[0]), joint * 2)


def test_latents_of_different_sizes_in_one_call_are_refused():
    items = [torch.zeros(4, 1, 8, 8), torch.zeros(4, 1, 8, 6)]
    with pytest.raises(
        ditaccel.UnsupportedError, match=r"4x1x8x8, 4x1x8x6\); call the pipeline once"
    ):
        as_tensor(items)
