"""bench sla: every way is exact where all is critical; the fitted projection fits."""

from __future__ import annotations

from argparse import Namespace

import torch
from ditaccel.eval.bench.sla import _Watcher, best_projection, relative
from ditaccel.kernels import FEATURE_MAPS
from tiny import generate, tiny_wan

from ditaccel.tuning.observe import observed


def test_all_ways_are_exact_where_all_tiles_are_critical():
    pipe, call = tiny_wan(layers=2)
    watcher = _Watcher(Namespace(every=2, layers=1, critical=[1.0, 0.2], q_tile=16, k_tile=16))
    with observed(pipe, watcher):
        generate(pipe, {**call, "height": 64, "width": 64}, num_inference_steps=2)
    ways = {way for critical, way in watcher.seen if critical == 1.0}
    assert len(ways) == 1 + 2 * len(FEATURE_MAPS) + 2 + 3
    for (critical, way), (errors, densities) in watcher.seen.items():
        assert len(errors) == 2 * 2, way  # layers and branches of the one sampled step
        if critical == 1.0:
            assert max(errors) < 1e-5 and min(densities) == 1.0, way
        else:
            assert max(densities) <= 0.5, way
    plain, moments = (sum(watcher.seen[0.2, w][0]) for w in ("plain sparse", "moments"))
    assert moments < plain


def test_the_fitted_projection_by_hand():
    generator = torch.Generator().manual_seed(0)
    linear = torch.randn(1, 2, 200, 4, generator=generator)
    weight = torch.randn(2, 4, 4, generator=generator)
    wanted = linear @ weight + 3.0
    assert relative(best_projection(linear, wanted), wanted) < 1e-3
    assert relative(2 * wanted, wanted) == 1.0
