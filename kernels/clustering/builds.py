"""What is compiled ahead of time of clustering, and of the kernels over tokens that go with it."""

from __future__ import annotations

from collections.abc import Iterator

from ..build import Build, build_of
from ..permutation import permute_launch
from ..segments import segment_means_launch
from .triton_backend import assign_launch

_DIM = 128
_TYPES = {
    **dict.fromkeys(("p_centroids", "p_squares", "p_empty"), "*fp32"),
    **dict.fromkeys(("p_labels", "p_order", "p_offsets"), "*i32"),
}


def builds(arch: int | str) -> Iterator[Build]:
    """The builds for a device; these are the same for all."""
    means = segment_means_launch(_DIM, ordered=True, keep_empty=True)
    for name, kernel, launch, own in (
        ("assign", "clustering.triton_kernel:assign_kernel", assign_launch(_DIM), {}),
        ("segment_mean", "triton_tokens:segment_mean_kernel", means, {"p_out": "*fp32"}),
        ("permute", "triton_tokens:permute_kernel", permute_launch(_DIM, inverse=False), {}),
    ):
        types = {**_TYPES, **own}
        yield build_of(f"{name} bf16 D{_DIM}", kernel, launch, types, pointers="*bf16")
