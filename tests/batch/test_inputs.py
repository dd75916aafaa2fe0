"""Images and videos that items start from: bounded, named in errors, and nothing else is opened."""

from __future__ import annotations

import threading
import tracemalloc
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from job_folders import FACTS, plan
from PIL import Image

from ditaccel.batch import inputs
from ditaccel.batch.encode import write_mp4
from ditaccel.batch.inputs import check_input, load_inputs
from ditaccel.errors import UsageError

av = pytest.importorskip("av")


def clip(frames: int = 4, height: int = 32, width: int = 48) -> np.ndarray:
    ramp = np.linspace(0, 255, width)[None, None, :, None]
    return np.broadcast_to(ramp, (frames, height, width, 3)).astype(np.uint8).copy()


@pytest.fixture
def files(tmp_path: Path) -> Path:
    Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
    write_mp4(tmp_path / "a.mp4", clip(), 16.0, "h264", 5)
    (tmp_path / "b.png").write_bytes(b"no picture")
    return tmp_path


def test_inputs(files: Path) -> None:
    given = {"image": str(files / "a.png"), "video": str(files / "a.mp4")}
    made = load_inputs(given)
    assert np.array_equal(np.asarray(made["image"]), clip(1)[0]) and len(made["video"]) == 4
    for name, source in given.items():
        check_input(name, source)


@pytest.mark.parametrize("name", ["image", "video"])
@pytest.mark.parametrize("read", [check_input, lambda name, path: load_inputs({name: path})])
def test_a_file_that_is_none_reads_as_its_path(files: Path, name: str, read: Any) -> None:
    with pytest.raises(UsageError) as caught:
        read(name, str(files / "b.png"))
    said = str(caught.value)
    assert f"{name} {files}/b.png cannot be read" in said and "_io" not in said


@pytest.mark.parametrize(
    ("name", "file", "most", "words"),
    [
        ("image", "a.png", 32 * 48 - 1, "megapixels are more than max_input, 1535"),
        ("video", "a.mp4", 4 * 65536 - 1, "4 frames of 0.0 megapixels"),
    ],
)
def test_inputs_are_bounded_before_they_are_decoded(
    files: Path, name: str, file: str, most: int, words: str
) -> None:
    source = str(files / file)
    for read in (
        lambda: check_input(name, source, most),
        lambda: load_inputs({name: source}, most),
    ):
        with pytest.raises(UsageError, match=words):
            read()
    load_inputs({name: source}, most + 1)


def test_a_picture_that_would_take_all_memory_is_refused_by_its_header(tmp_path: Path) -> None:
    # a tenth of a megabyte on disk, 120 MB decoded
    Image.new("L", (11_000, 11_000)).save(tmp_path / "bomb.png")
    tracemalloc.start()
    try:
        with pytest.raises(UsageError, match="max_input"):
            check_input("image", str(tmp_path / "bomb.png"), 100_000_000)
        assert tracemalloc.get_traced_memory()[1] < 20e6
    finally:
        tracemalloc.stop()


def test_a_video_that_says_too_little_of_itself_is_bounded_while_it_is_decoded(
    tmp_path: Path,
) -> None:
    # a raw stream has neither a number of frames nor a duration
    with av.open(str(tmp_path / "a.h264"), "w", format="h264") as container:
        stream = container.add_stream("libx264", rate=16)
        stream.width, stream.height, stream.pix_fmt = 48, 32, "yuv420p"
        for picture in clip(30):
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode())
    source = str(tmp_path / "a.h264")
    check_input("video", source, 10 * 65536)
    with pytest.raises(UsageError, match=r"11 frames .*max_input"):
        load_inputs({"video": source}, 10 * 65536)
    assert len(load_inputs({"video": source}, 30 * 65536)["video"]) == 30


def test_a_playlist_leads_nowhere(files: Path) -> None:
    (files / "list.mp4").write_text(
        f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{files}/a.mp4\n#EXT-X-ENDLIST\n"
    )
    (files / "concat.mp4").write_text(f"ffconcat version 1.0\nfile '{files}/a.mp4'\n")
    for name in ("list.mp4", "concat.mp4"):
        with pytest.raises(UsageError, match="cannot be read"):
            load_inputs({"video": str(files / name)})


def test_a_row_with_a_bad_input_fails_while_it_is_planned(files: Path) -> None:
    facts_rows = [{"prompt": "a", "image": name} for name in ("a.png", "b.png", "none.png")]
    good, broken, missing = plan(files, *facts_rows)
    assert good.error == "" and "b.png cannot be read" in broken.error
    assert "no file at none.png" in missing.error
    (small,) = plan(files, facts_rows[0], max_input=10)
    assert "max_input, 10 " in small.error and FACTS.pipeline == "WanPipeline"


def test_remote_inputs_and_their_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *args: object) -> None:
            """Say nothing."""

    Image.fromarray(clip(1)[0]).save(tmp_path / "a.png")
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=str(tmp_path)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_port}/a.png"
        made = load_inputs({"image": url})
        assert np.array_equal(np.asarray(made["image"]), clip(1)[0])
        with pytest.raises(UsageError, match=r"cannot be read .*404"):
            load_inputs({"image": url.replace("a.png", "b.png")})
        monkeypatch.setattr(inputs, "MAX_BYTES", 100)
        with pytest.raises(UsageError, match="larger than"):
            load_inputs({"image": url})
    finally:
        server.shutdown()
        server.server_close()
