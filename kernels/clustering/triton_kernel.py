"""Triton kernel of k-means: assignment of tokens to centroids; import only where Triton is there.

Names as in `attention/triton_kernel.py`: `p_` a pointer, `s_` a stride, `o_` offsets, `b_` a block.
"""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["heads", "length", "clusters", "s_x_b"])
def assign_kernel(
    p_x,
    p_centroids,
    p_squares,
    p_labels,
    s_x_b,
    s_x_h,
    s_x_l,
    s_x_d,
    heads,
    length,
    clusters,
    D: tl.constexpr,
    BLOCK_D: tl.constexpr,
    BLOCK_L: tl.constexpr,
    BLOCK_C: tl.constexpr,
):
    """Nearest centroid of a block of tokens: argmin over c of |c|^2 - 2 x c.

    Distances of a block of centroids at a time are held, and none is stored (flash-kmeans,
    arXiv 2603.09229). Of equally near centroids the lowest number wins.
    """
    i_bh = tl.program_id(1).to(tl.int64)
    i_b, i_h = i_bh // heads, i_bh % heads
    o_l = tl.program_id(0).to(tl.int64) * BLOCK_L + tl.arange(0, BLOCK_L)
    o_d = tl.arange(0, BLOCK_D).to(tl.int64)
    mask_d = o_d < D
    p_x += i_b * s_x_b + i_h * s_x_h
    b_x = tl.load(
        p_x + o_l[:, None] * s_x_l + o_d[None, :] * s_x_d,
        mask=(o_l < length)[:, None] & mask_d[None, :],
        other=0.0,
    ).to(tl.float32)
    p_centroids += i_bh * clusters * D
    p_squares += i_bh * clusters
    nearest = tl.full([BLOCK_L], float("inf"), tl.float32)
    label = tl.zeros([BLOCK_L], tl.int32)
    for start in range(0, clusters, BLOCK_C):
        o_c = start + tl.arange(0, BLOCK_C)
        mask_c = o_c < clusters
        b_c = tl.load(
            p_centroids + o_c[None, :] * D + o_d[:, None],
            mask=mask_c[None, :] & mask_d[:, None],
            other=0.0,
        )
        b_squares = tl.load(p_squares + o_c, mask=mask_c, other=float("inf"))
        b_products = tl.dot(b_x, b_c, input_precision="ieee")
        b_distance = b_squares[None, :] - 2.0 * b_products
        b_least = tl.min(b_distance, 1)
        # The lowest of those at the least distance.
        candidates = tl.where(b_distance == b_least[:, None], o_c[None, :], clusters)
        b_label = tl.min(candidates, 1).to(tl.int32)
        closer = b_least < nearest
        label = tl.where(closer, b_label, label)
        nearest = tl.where(closer, b_least, nearest)
    tl.store(p_labels + i_bh * length + o_l, label, mask=o_l < length)
