"""Differences from frame to frame, by hand."""

import numpy as np
import pytest
from ditaccel.eval.metrics.temporal import flicker, temporal_consistency

STILL = np.full((4, 8, 8, 3), 100, np.uint8)


def test_a_clip_that_stands_still_is_consistent() -> None:
    assert temporal_consistency(STILL, STILL) == 1.0
    assert flicker(STILL, STILL) == 0.0


def test_changes_count_their_levels() -> None:
    blinks = STILL + np.array([0, 6, 0, 6], np.uint8).reshape(4, 1, 1, 1)
    assert flicker(STILL, blinks) == pytest.approx(6)
    assert temporal_consistency(STILL, blinks) == pytest.approx(1 - 6 / 255)
    # one of the three changes is off by 9, and half of the pixels have it
    once = STILL.copy()
    once[3, :4] += 9
    assert flicker(STILL, once) == pytest.approx(9 / 6)


def test_motion_that_dense_has_and_a_lasting_error_are_no_flicker() -> None:
    moves = (STILL + np.arange(0, 80, 20, dtype=np.uint8).reshape(4, 1, 1, 1)).astype(np.uint8)
    assert flicker(moves, moves + np.uint8(30)) == pytest.approx(0)
    assert temporal_consistency(moves, moves) == pytest.approx(1 - 20 / 255)


def test_a_picture_has_no_time() -> None:
    assert flicker(STILL[:1], STILL[:1]) is None
    assert temporal_consistency(STILL[0], STILL[0]) is None
