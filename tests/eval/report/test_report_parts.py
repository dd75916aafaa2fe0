"""Parts of the report that have a right answer: labels, heat maps, strips, videos, plot places."""

import base64
import io

import numpy as np
import pytest
from ditaccel.eval.report import media
from ditaccel.eval.report.markup import breakable, el, raw
from ditaccel.eval.report.plots import marker_path
from ditaccel.eval.report.series import PALETTE, short_labels

from ditaccel.errors import UsageError


@pytest.mark.parametrize(
    ("labels", "series", "short"),
    [
        (["TaylorSeer N=2", "TaylorSeer N=13"], "TaylorSeer", ["N=2", "N=13"]),
        (["CG 0.1", "CG 0.12"], "CG", ["0.1", "0.12"]),
        (["m:a=2,b=1", "m:a=3,b=1"], "m:a=*,b=1", ["a=2", "a=3"]),
        (["16 steps", "13 steps"], "fewer steps", ["16 steps", "13 steps"]),
        (["balanced"], "balanced", ["balanced"]),
    ],
)
def test_short_labels(labels: list[str], series: str, short: list[str]) -> None:
    assert short_labels(labels, series) == short


def test_markup_escapes_all_but_markup() -> None:
    assert el("p", "<b>", raw("<i>"), title='"&') == '<p title="&quot;&amp;">&lt;b&gt;<i></p>'
    assert breakable("a:b,<c") == "a:<wbr>b,<wbr>&lt;c"


def test_heat_map_is_black_where_equal_and_bright_where_far() -> None:
    dense = np.zeros((1, 2, 2, 3), np.uint8)
    other = dense.copy()
    other[0, 0, 0] = media.HEAT_MAX
    other[0, 0, 1] = 255
    heat = media.heat_map(other, dense)
    assert heat.shape == dense.shape and heat.dtype == np.uint8
    assert heat[0, 1, 1].sum() < 8  # black
    assert heat[0, 0, 0].min() > 180 and (heat[0, 0, 0] == heat[0, 0, 1]).all()


def test_heat_ramp_grows_lighter_without_colour_vision() -> None:
    gaps = np.arange(0, media.HEAT_MAX + 1, dtype=np.uint8)
    picture = np.repeat(gaps[None, None, :, None], 3, axis=3)
    luma = media.heat_map(picture, np.zeros_like(picture))[0, 0] @ np.array(
        [0.2126, 0.7152, 0.0722]
    )
    assert (np.diff(luma) > 0).mean() > 0.95


def test_small_pictures_are_lossless() -> None:
    from PIL import Image

    picture = np.random.default_rng(0).integers(0, 256, (32, 40, 3), dtype=np.uint8)
    uri = media.encode_picture(picture)
    assert uri.startswith("data:image/png;base64,")
    back = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert (np.asarray(back) == picture).all()


def test_large_pictures_are_shrunk() -> None:
    from PIL import Image

    uri = media.encode_picture(np.zeros((1024, 512, 3), np.uint8))
    back = Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1])))
    assert max(back.size) == media.PICTURE_SIDE


@pytest.mark.parametrize("count", [1, 2, 6, 17])
def test_strip_holds_first_and_last_frame(count: int) -> None:
    frames = np.stack([np.full((8, 8, 3), 10 * i, np.uint8) for i in range(count)])
    strip = media.frame_strip(frames)
    assert (strip[:, :8] == 0).all() and (strip[:, -8:] == 10 * (count - 1)).all()
    shown = min(count, media.STRIP_FRAMES)
    assert strip.shape == (8, 8 * shown + shown - 1, 3)


def test_video_decodes_to_the_frames() -> None:
    import av

    frames = np.zeros((9, 16, 24, 3), np.uint8)
    for i in range(9):
        frames[i, :, 2 * i : 2 * i + 6] = (220, 60, 40)
    uri = media.encode_video(frames, fps=8)
    assert uri.startswith("data:video/webm;base64,")
    with av.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))) as container:
        assert container.streams.video[0].average_rate == 8
        decoded = [f.to_ndarray(format="rgb24") for f in container.decode(video=0)]
    assert len(decoded) == 9
    scale = media.VIDEO_SIDE // 24
    small = np.stack([f[scale // 2 :: scale, scale // 2 :: scale] for f in decoded])
    assert np.abs(small.astype(int) - frames.astype(int)).mean() < 8


def test_frames_of_another_kind_are_refused(tmp_path) -> None:
    np.savez(tmp_path / "a.npz", frames=np.zeros((2, 8, 8, 3), np.float32))
    with pytest.raises(UsageError, match="uint8"):
        media.read_frames(tmp_path / "a.npz")


@pytest.mark.parametrize("marker", ["square", "circle", "triangle", "down", "diamond", "hexagon"])
def test_markers_are_closed_paths(marker: str) -> None:
    path = marker_path(marker, 10, 10, 5)
    assert path.startswith("M") and path.endswith("z")


def _contrast(a: str, b: str) -> float:
    def luminance(colour: str) -> float:
        parts = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.03928 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
        return sum(w * c for w, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    high, low = sorted((luminance(a), luminance(b)), reverse=True)
    return (high + 0.05) / (low + 0.05)


def test_series_colours_stand_out_in_both_themes() -> None:
    for light, dark in PALETTE:
        assert _contrast(light, "#fbfbf9") >= 4.0
        assert _contrast(dark, "#14161a") >= 4.5
