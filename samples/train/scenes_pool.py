"""Render and encode scenes: `python samples/train/scenes_pool.py pictures 24576`.

Pictures are for scenes-flux; frames (first frames of clips) and clips for scenes-wan; ways (from
noise to picture, as the exported scenes-flux takes them) for scenes-flux-turbo. A pool grows by
chunks; what is there stays.

`python samples/train/scenes_pool.py pictures 64 --hardness` leaves the pool alone: it foretells
from new pictures (or clips) how hard a model on such latents will be for caches.
"""

from __future__ import annotations

import argparse

import torch
from scenes import hardness
from scenes.pools import extend, extend_clips


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("kind", choices=["pictures", "frames", "clips", "ways"])
    parser.add_argument("count", type=int)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--hardness", action="store_true", help="of pictures or clips; no pool")
    arguments = parser.parse_args()
    if arguments.hardness and arguments.kind not in ("pictures", "clips"):
        parser.error("--hardness is of pictures or clips")
    torch.set_num_threads(arguments.threads)
    if arguments.hardness:
        print(hardness.report(arguments.kind, arguments.count))
    elif arguments.kind == "pictures":
        extend(arguments.count)
    elif arguments.kind == "ways":
        from scenes.turbo import SceneTrajectories

        SceneTrajectories.record(arguments.count)
    else:
        extend_clips(arguments.count, single=arguments.kind == "frames")


if __name__ == "__main__":
    main()
