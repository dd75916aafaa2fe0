"""Every attention map, with everything that may stand for its rest, on the same attention calls.

    ditaccel bench maps samples/models/shapes-wan --out maps

Queries, keys and values of some steps and layers are recorded once; every registered attention
method then plans and computes them again, the recorded steps in their order, at several densities
(`Swept` in `attention/engine/options.py`). What it gives is compared with dense attention in
float64. A killed run resumes: everything that was measured is in the folder.
"""

from .command import HELP, add_arguments, run

__all__ = ["HELP", "add_arguments", "run"]
