"""Masks that models hand to attention are reduced to key padding, or refused with a reason."""

import pytest
import torch
from planners import RecordingPlanner, use
from tiny import FAMILIES, generate

from ditaccel.attention.engine import masks
from ditaccel.attention.engine.masks import KeyMask, NotKeyPadding

KEYS = torch.tensor([[1, 1, 1, 1, 0, 1, 0], [1, 1, 1, 1, 1, 0, 0]]).bool()
PAIRS = (KEYS[:, None, :, None] & KEYS[:, None, None, :]).clone()


@pytest.fixture(params=[None, 7, 20], ids=["at once", "row by row", "in parts"])
def parts(request, monkeypatch):
    """However few elements are compared at a time, the answer is the same."""
    if request.param:
        monkeypatch.setattr(masks, "_AT_ONCE", request.param)


@pytest.mark.parametrize(
    "mask",
    [
        KEYS,
        KEYS[:, None],
        KEYS[:, None, None],
        KEYS[:, None, None].expand(2, 3, 7, 7),
        torch.where(KEYS, 0.0, -1e4)[:, None, None],
        torch.where(KEYS, 0.0, float("-inf"))[:, None],
        PAIRS,  # as HunyuanVideo 1.5 makes it in every block
    ],
)
def test_key_padding_in_all_its_forms(mask, parts):
    found = KeyMask(mask)
    assert torch.equal(found.keys, KEYS)
    assert found.covers(mask) and found.covers(mask.clone())
    assert not found.covers(~mask if mask.dtype == torch.bool else mask - 1)


def test_views_of_one_mask_are_known_without_a_comparison(monkeypatch):
    """A comparison waits for the device, which blocks that reshape a mask would pay for each."""
    found = KeyMask(KEYS[:, None, None])
    monkeypatch.setattr(torch, "equal", None)
    assert found.covers(KEYS[:, None, None]) and found.covers(KEYS.view(2, 1, 1, 7))
    assert not found.covers(KEYS)
    with pytest.raises(TypeError):
        found.covers(KEYS.clone()[:, None, None])


def test_a_mask_that_was_overwritten_is_another_one():
    for mask in (KEYS[:, None, None].clone(), PAIRS.clone()):
        found = KeyMask(mask)
        mask[..., 0] = False
        assert not found.covers(mask) and not found.covers(mask, trusted=True)


@pytest.fixture
def compared(monkeypatch):
    """Numbers of elements that were compared, of each comparison."""
    counts, plain = [], torch.equal
    monkeypatch.setattr(torch, "equal", lambda a, b: counts.append(a.numel()) or plain(a, b))
    return counts


def test_rows_tell_a_copy_where_the_layer_is_trusted(compared):
    found = KeyMask(PAIRS)
    assert found.covers(PAIRS.clone(), trusted=True) and compared == [2 * 3 * 7]
    other = KEYS.roll(1, -1)
    for wrong in (
        other[:, None, None] & KEYS[:, None, :, None],
        PAIRS & torch.ones(7, 7).tril().bool(),
    ):
        assert not found.covers(wrong, trusted=True)
    found.release()
    assert found.covers(PAIRS.clone(), trusted=True) and not found.covers(PAIRS.clone())


def test_an_expanded_mask_is_one_row(compared):
    row = KEYS[:, None, None]
    found = KeyMask(row.expand(2, 1, 7, 7))
    assert torch.equal(found.keys, KEYS)
    compared.clear()
    assert found.covers(row.clone().expand(2, 1, 7, 7)) and compared == [2 * 7]
    assert not found.covers(~row.expand(2, 1, 7, 7)) and found.covers(row.repeat(1, 1, 7, 1))


def test_pairs_of_tokens_are_compared_once_a_layer_and_generation(compared, monkeypatch):
    """HunyuanVideo 1.5 makes a mask of all pairs in every block."""
    made, shapes, plain = [], set(), KeyMask.__init__

    def look(self, mask, *where):
        made.append(mask.shape)
        shapes.add(tuple(mask.shape))
        plain(self, mask, *where)

    monkeypatch.setattr(KeyMask, "__init__", look)
    pipe, call = FAMILIES["hunyuan_video15"]()
    planner = RecordingPlanner()
    use(pipe, planner)
    for generation in (1, 2):
        made.clear(), compared.clear()
        generate(pipe, call)
        steps = {context.step.index for context, _ in planner.seen}
        branches = {context.step.branch for context, _ in planner.seen}
        layers = planner.seen[0][0].layers
        ((batch, heads, length, _),) = shapes
        assert heads == 1 and len(steps) > 3 and layers > 1, generation
        assert len(made) == len(branches)
        whole = [n for n in compared if n == batch * length**2]
        assert len(whole) == len(branches) * (layers - 1)
        rows = [n for n in compared if n <= 3 * batch * length]
        assert len(rows) == len(branches) * layers * (len(steps) - 1)
        assert len(compared) == len(whole) + len(rows)


def test_text_that_no_image_token_sees_is_padding_whatever_it_sees(parts):
    """As Ideogram 4 pads: two tokens that see each other, in front of text and image."""
    segments = torch.tensor([[0, 0, 1, 1, 1, 1, 1]])
    mask = segments[:, None, :, None] == segments[:, None, None]
    with pytest.raises(NotKeyPadding, match="differs between queries"):
        KeyMask(mask)
    found = KeyMask(mask, slice(3, 7))
    assert torch.equal(found.keys, segments == 1) and found.covers(mask.clone())
    for image in (slice(0, 4), slice(1, 7)):  # images of two sequences in one
        with pytest.raises(NotKeyPadding, match="differs between queries"):
            KeyMask(mask, image)
    mask[..., 2, 0] = True  # text that the image sees, and that sees the padding
    with pytest.raises(NotKeyPadding, match="differs between queries"):
        KeyMask(mask, slice(3, 7))


def test_a_mask_of_nothing_is_none(parts):
    assert KeyMask(torch.ones(2, 1, 7, 7).bool()).keys is None
    assert KeyMask(torch.zeros(2, 7)).keys is None


@pytest.mark.parametrize("row", range(4))
def test_one_real_row_that_differs_is_found_wherever_it_is(row, parts):
    mask = PAIRS.clone()
    mask[1, 0, row, 2] = False
    with pytest.raises(NotKeyPadding, match="differs between queries"):
        KeyMask(mask)


def test_what_is_no_key_padding_says_what_it_is(parts):
    with pytest.raises(NotKeyPadding, match="differs between queries"):
        KeyMask(torch.ones(7, 7).tril().bool()[None, None])
    with pytest.raises(NotKeyPadding, match="differs between heads"):
        KeyMask(torch.stack([PAIRS[:, 0], ~PAIRS[:, 0]], 1))
    with pytest.raises(NotKeyPadding, match="adds a bias"):
        KeyMask(torch.full((2, 1, 1, 7), -0.5))
    with pytest.raises(NotKeyPadding, match=r"ones and zeros .* give the pipeline booleans"):
        KeyMask(PAIRS.float())  # as Chroma's own text encoder makes it
    with pytest.raises(NotKeyPadding, match="it has a str, a sparse attention of its own"):
        KeyMask("blocks")
