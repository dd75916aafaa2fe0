"""What a comparison knows of its rows before it runs them."""

import pytest
from ditaccel.eval import specs
from ditaccel.eval.comparison.rows import Rows


@pytest.mark.parametrize(
    ("spec", "unseen"),
    [
        ("balanced", False),
        ("steps:4+taylorseer", False),
        ("svg2", True),
        ("balanced & sla", True),
        ("token_merging", True),
        ("parallel_denoising", True),
    ],
)
def test_rows_that_save_what_counted_layers_do_not_show(spec, unseen):
    """The computed share of such a row is whole: that does not mean that nothing is skipped."""
    rows = Rows(None, "wan")
    chosen = rows.told(specs.build([spec], 8, [], rows.validate))
    (row,) = [row for row in chosen if row.role not in (specs.Role.DENSE, specs.Role.OTHER_SEED)]
    assert row.sparse is unseen
    assert not any(row.sparse for row in chosen if row.role is specs.Role.DENSE)
