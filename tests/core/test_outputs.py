"""What transformers return, taken apart and put together."""

import pytest
import torch
from diffusers.models.transformers.transformer_ltx2 import AudioVisualModelOutput

from ditaccel.core.outputs import all_finite, form_of, join, split, tensors_of, with_tensors

VIDEO, SOUND = torch.arange(24.0).reshape(2, 4, 3), torch.arange(10.0).reshape(2, 5, 1)


@pytest.mark.parametrize(
    ("output", "count", "whole"),
    [
        (VIDEO, 1, True),
        ((VIDEO,), 1, True),
        ((VIDEO, SOUND), 2, True),
        ((VIDEO, None, None), 1, True),
        ((VIDEO, "more"), 1, False),
        (AudioVisualModelOutput(sample=VIDEO, audio_sample=SOUND), 2, True),
    ],
)
def test_outputs_are_taken_apart_exchanged_and_made_anew(output, count, whole):
    tensors = tensors_of(output, count)
    assert all(a is b for a, b in zip(tensors, [VIDEO, SOUND][:count], strict=True))
    others = [t + 1 for t in tensors]
    form = form_of(output, count)
    assert (form is not None) == whole
    made = [with_tensors(output, others)] + ([form(others)] if form else [])
    for each in made:
        assert type(each) is type(output)
        assert all(a is b for a, b in zip(tensors_of(each, count), others, strict=True))
        assert not isinstance(output, tuple) or each[count:] == output[count:]


def test_an_argument_that_is_handed_back_is_part_of_the_form():
    kept = {"keys": VIDEO}
    assert (
        form_of((VIDEO, kept)) is None and form_of((VIDEO, kept), given=({"keys": VIDEO},)) is None
    )
    made = form_of((VIDEO, kept), given=(kept,))([VIDEO + 1])
    assert torch.equal(made[0], VIDEO + 1) and made[1] is kept


def test_streams_joined_and_split_are_the_same_bits():
    joined = join([VIDEO, SOUND])
    assert joined.shape == (2, 17)
    for part, stream in zip(split(joined, [VIDEO.shape, SOUND.shape]), (VIDEO, SOUND), strict=True):
        assert torch.equal(part, stream)
    assert join([VIDEO]) is VIDEO and split(VIDEO, [VIDEO.shape])[0] is VIDEO


def test_lists_of_the_batchs_items_are_one_tensor_and_lists_again():
    """Z-Image returns one tensor for each item."""
    output = (list(VIDEO.unbind()),)
    assert torch.equal(tensors_of(output)[0], VIDEO)
    for made in (with_tensors(output, [VIDEO + 1]), form_of(output)([VIDEO + 1])):
        assert isinstance(made[0], list) and torch.equal(torch.stack(made[0]), VIDEO + 1)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("broken", ["nan", "inf", "-inf"])
def test_one_broken_value_is_enough(dtype, broken):
    values = torch.full((3, 5), torch.finfo(dtype).max, dtype=dtype)
    values[0] *= -1
    assert all_finite(values)
    values[1, 2] = float(broken)
    assert not all_finite(values)
