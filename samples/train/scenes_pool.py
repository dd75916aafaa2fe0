"""Render and encode pictures of scenes: `python samples/train/scenes_pool.py COUNT`."""

from __future__ import annotations

import argparse

import torch
from scenes.pools import extend

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    extend(arguments.count)
