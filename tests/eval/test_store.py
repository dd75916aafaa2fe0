"""The run's folder: killed writers, damaged files, foreign setups."""

import errno
import json
import os

import numpy as np
import pytest
from ditaccel.eval import store as store_module
from ditaccel.eval.records import SCHEMA
from ditaccel.eval.store import Store, load_frames

from ditaccel.errors import UsageError
from ditaccel.io.files import plain, read_json, read_lines, write_json

DENSE = dict.fromkeys(("id", "label", "series", "role", "spec"), "dense")
SETUP = {"schema": SCHEMA, "configs": [DENSE], "prompts": ["a"], "seeds": [0]}


def line(config: str = "dense", sample: str = "p000-s0") -> dict:
    return {
        "config": config,
        "sample": sample,
        "media": f"media/{config}/{sample}.npz",
        "seconds": 1.0,
        "timing": {"seconds": 1.0},
        "pairs": [],
        "calls": [],
        "work": 1.0,
    }


def result(sample: str = "p000-s0", **metrics: float | None) -> dict:
    judged = {"psnr": 99.0, "mse": 0.0, "identical": True, **metrics}
    seen = {"prompt": "a", "seed": 0, "computed_share": 1.0, "metrics": judged}
    return {**line(sample=sample), **seen}


def frames() -> np.ndarray:
    return np.zeros((1, 4, 4, 3), np.uint8)


def test_what_is_written_is_read_again(tmp_path) -> None:
    with Store(tmp_path / "run", SETUP) as store:
        assert not store.is_done("dense", "p000-s0")
        store.add_generation(line(), frames())
        store.add_result(result(ssim=float("inf")))
    with Store(tmp_path / "run", SETUP) as store:
        assert store.is_done("dense", "p000-s0")
        assert np.array_equal(store.frames("dense", "p000-s0"), frames())
        assert store.results["dense", "p000-s0"]["metrics"]["ssim"] is None
        (tmp_path / "run" / line()["media"]).unlink()
        assert not store.is_done("dense", "p000-s0")


@pytest.mark.parametrize("torn", [b'{"config": "dense", "sam', b"\xff\xfe"])
def test_half_written_last_line_is_cut_off(tmp_path, torn) -> None:
    folder = tmp_path / "run"
    with Store(folder, SETUP) as store:
        store.append("results.jsonl", result())
    with (folder / "results.jsonl").open("ab") as file:
        file.write(torn)
    with Store(folder, SETUP) as store:
        store.append("results.jsonl", result("p001-s0"))
    found = [d.get("sample") for d in read_lines(folder / "results.jsonl")]
    assert found[0] == "p000-s0" and found[-1] == "p001-s0"
    assert (folder / "results.jsonl").read_bytes().endswith(b"\n")


def test_a_damaged_line_in_the_middle_is_named(tmp_path) -> None:
    folder = tmp_path / "run"
    Store(folder, SETUP).close()
    for text, words in (
        ('{"config": "a"}\nbroken\n{"config": "b"}\n', "line 2 is damaged"),
        ('{"config": "a"}\n', "line 1 is damaged: sample is missing"),
        ("[]\n", "line 1 is damaged"),
    ):
        (folder / "generations.jsonl").write_text(text)
        with pytest.raises(UsageError, match=words):
            Store(folder, SETUP)


def test_drafts_of_a_killed_run_are_cleared(tmp_path) -> None:
    folder = tmp_path / "run"
    with Store(folder, SETUP) as store:
        store.add_generation(line(), frames())
    draft = folder / "media/dense/.p001-s0.npz.123.draft"
    draft.write_bytes(b"half")
    Store(folder, SETUP).close()
    assert not draft.exists()


def test_another_setup_is_refused(tmp_path) -> None:
    Store(tmp_path / "run", SETUP).close()
    with pytest.raises(UsageError, match=r"another setup \(different: seeds\)"):
        Store(tmp_path / "run", SETUP | {"seeds": [1]})
    Store(tmp_path / "run", SETUP | {"commit": "later"}).close()
    (tmp_path / "run" / "run.json").write_text("{")
    with pytest.raises(UsageError, match="damaged"):
        Store(tmp_path / "run", SETUP)
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(UsageError, match=r"no run\.json"):
        (tmp_path / "run" / "results.jsonl").touch()
        Store(tmp_path / "run", SETUP)


def test_a_second_process_is_kept_out(tmp_path) -> None:
    with (
        Store(tmp_path / "run", SETUP),
        pytest.raises(UsageError, match="another evaluation is writing"),
    ):
        Store(tmp_path / "run", SETUP)
    Store(tmp_path / "run", SETUP).close()


def test_unwritable_out(tmp_path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="not writable"):
        Store(tmp_path / "file" / "run", SETUP)
    if os.geteuid() != 0:
        (tmp_path / "locked").mkdir(mode=0o500)
        with pytest.raises(UsageError, match="not writable"):
            Store(tmp_path / "locked" / "run", SETUP)


def test_a_full_disk_is_one_clear_line_and_the_run_goes_on_later(tmp_path, monkeypatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with Store(tmp_path / "run", SETUP) as store:
        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(UsageError, match="No space left on device"):
            store.add_generation(line(), frames())
        with pytest.raises(UsageError, match="No space left on device"):
            store.append("results.jsonl", result())
    monkeypatch.undo()
    assert not list((tmp_path / "run").rglob("*.npz")) and not list(tmp_path.rglob("*.draft"))
    with Store(tmp_path / "run", SETUP) as store:
        store.add_generation(line(), frames())
        assert store.is_done("dense", "p000-s0")


def test_damaged_media(tmp_path) -> None:
    (tmp_path / "x.npz").write_bytes(b"PK broken")
    with pytest.raises(UsageError, match="damaged; delete it"):
        load_frames(tmp_path / "x.npz")


def test_media_that_would_fill_the_memory_are_refused(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(store_module, "_LARGEST", 1 << 20)
    np.savez_compressed(tmp_path / "bomb.npz", frames=np.zeros((1, 1024, 1024, 3), np.uint8))
    assert (tmp_path / "bomb.npz").stat().st_size < 10_000
    with pytest.raises(UsageError, match=r"holds 3 MiB, more than the 1 MiB"):
        load_frames(tmp_path / "bomb.npz")


def test_json_files_are_strict_and_whole(tmp_path) -> None:
    write_json(
        tmp_path / "a.json", {"x": float("nan"), "y": np.float32(1.5), "z": (1, np.int64(2))}
    )
    assert json.loads((tmp_path / "a.json").read_text()) == {"x": None, "y": 1.5, "z": [1, 2]}
    with pytest.raises(TypeError):
        write_json(tmp_path / "a.json", {"x": object()})
    assert read_json(tmp_path / "a.json")["y"] == 1.5
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(UsageError, match="missing"):
        read_json(tmp_path / "none.json")
    assert plain(float("inf")) is None
