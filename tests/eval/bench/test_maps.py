"""`ditaccel bench maps`: density, mass and error of every map, from queries recorded once."""

from __future__ import annotations

from dataclasses import replace

from ditaccel import config


def test_what_a_method_sweeps_are_options_that_it_takes():
    for name, cls in config.methods().items():
        swept = getattr(cls, "swept", None)
        if swept is None:
            continue
        assert len(swept.values) >= 2, name
        for value in swept.values:
            replace(cls(), **swept.options, **{swept.option: value})
