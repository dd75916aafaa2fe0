"""The HTML report: complete, escaped, self-contained, and honest about what is missing."""

import json
import re
import shutil
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path

import pytest
from ditaccel.eval.report.page import markdown_table, write_pareto_png, write_report

from ditaccel.errors import UsageError

Writer = Callable[..., Path]
FEW = ("dense", "steps-10", "taylorseer-3", "cg-2", "peer-1")


VOID = ("meta", "link", "img", "br", "wbr")


class _Page(HTMLParser):
    """Collects what a page would load, its ids and whether its elements close."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.ids: set[str] = set()
        self.images_without_alt = 0
        self.open: list[str] = []
        self.text = ""
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.loads += [v for k, v in attrs if k in ("src", "srcset", "poster", "data") and v]
        if tag == "link":
            self.loads.append(values.get("href") or "")
        if values.get("id"):
            self.ids.add(str(values["id"]))
        self.images_without_alt += tag == "img" and not values.get("alt")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open and self.open[-1] == tag, f"</{tag}> closes {self.open[-3:]}"
        self.open.pop()

    def handle_data(self, data: str) -> None:
        if not self.open or self.open[-1] not in ("style", "script"):
            self.text += data


def _edit(path: Path, change: Callable[[dict], None]) -> None:
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))


@pytest.fixture(scope="module")
def pictures(write_evaluation: Writer, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_evaluation(tmp_path_factory.mktemp("pictures") / "run", video=False)


@pytest.fixture
def run(pictures: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(pictures, tmp_path / "run"))


def test_page_has_every_section_and_is_well_formed(run: Path) -> None:
    page = _Page(write_report(run).read_text())
    sections = {"verdict", "pareto", "matched", "pictures", "table", "steps", "provenance"}
    assert sections <= page.ids
    assert page.open == []
    assert page.images_without_alt == 0
    assert "fewer steps would serve you better" in page.text
    assert "Worst sample" in page.text and "Typical sample" in page.text
    assert page.text.index("Worst sample") < page.text.index("Typical sample")


def test_limits_and_machines_have_sections_where_they_are_known(run: Path) -> None:
    page = _Page(write_report(run).read_text())
    assert not {"limits", "machines"} & page.ids

    def change(summary: dict) -> None:
        summary["limits"] = {"text": "a CPU reached 100 GFLOP/s"}
        summary["configs"]["dense"] |= {"floor_seconds": 0.25, "floor_share": 0.125}
        one = {"name": "A", "samples": 2, "dense_seconds": 1.0, "speedup": {"steps-10": 1.9}}
        summary["machines"] = [one, {**one, "name": "B", "speedup": {}}]

    _edit(run / "summary.json", change)
    page = _Page(write_report(run).read_text())
    assert {"limits", "machines"} <= page.ids and page.open == []
    assert "a CPU reached 100 GFLOP/s" in page.text and "0.25 s" in page.text
    assert "12%" in page.text and "A (2 samples)" in page.text and "1.90×" in page.text


def test_page_loads_nothing(run: Path) -> None:
    text = write_report(run).read_text()
    assert all(load.startswith("data:") for load in _Page(text).loads)
    assert not re.findall(r"url\(|@import|fetch\(|XMLHttpRequest|<iframe", text)
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', text)
    assert policy is not None and policy.group(1).startswith("default-src &#x27;none&#x27;")
    assert len(text) < 8e6


def test_prompts_and_labels_are_escaped(write_evaluation: Writer, tmp_path: Path) -> None:
    attack = "<script>alert(1)</script><img src=x onerror=alert(2)> \"quoted\" & 'more'"
    run = write_evaluation(tmp_path, video=False, samples=1, configs=FEW, prompt=attack)
    _edit(run / "run.json", lambda d: d["configs"][2].update(label=attack, series=attack))
    _edit(run / "run.json", lambda d: d.update(model=f"somewhere/{attack}", commit=attack))
    _edit(
        run / "summary.json",
        lambda d: d["verdicts"].append(
            {"kind": "better than fewer steps", "level": "good", "text": attack}
        ),
    )
    _edit(run / "summary.json", lambda d: d["not_available"].update(lpips=attack))
    page = write_report(run).read_text()
    assert page.count("<script>") == 1
    assert "<img src=x" not in page
    assert attack in _Page(page).text
    assert "\n" not in markdown_table(run).splitlines()[2][2:].split(" | ")[0]


def test_markdown_escapes_the_column_mark(run: Path) -> None:
    _edit(run / "run.json", lambda d: d["configs"][6].update(label="a|b"))
    line = next(row for row in markdown_table(run).splitlines() if "a\\|b" in row)
    assert line.count(" | ") == markdown_table(run).splitlines()[0].count(" | ")


def test_table_lists_every_figure_and_how_to_get_the_missing(run: Path) -> None:
    text = _Page(write_report(run).read_text()).text
    for title in ("PSNR mean", "p5", "worst", "pooled", "SSIM", "FLIP", "FID dense", "FID real"):
        assert title in text
    assert "lpips: n/a. needs weights (option `weights`, lpips=FILE): VGG" in text
    assert "small N (3 samples)" in text
    table = (run / "table.md").read_text()
    assert table == markdown_table(run)
    assert "| TaylorSeer N=3 |" in table and "FID real at this N: biased upwards" in table


def test_missing_metrics_drop_their_columns(run: Path) -> None:
    def strip(data: dict) -> None:
        data["not_available"] = {}
        for stats in data["configs"].values():
            for key in ("flip", "fid_dense", "fid_real", "accuracy", "peak_memory_bytes"):
                stats.pop(key)
            stats["ssim"] = None

    _edit(run / "summary.json", strip)
    text = _Page(write_report(run).read_text()).text
    assert "FLIP" not in text and "SSIM" not in text and "PSNR mean" in text


def test_nothing_but_dense(write_evaluation: Writer, tmp_path: Path) -> None:
    run = write_evaluation(tmp_path, video=False, samples=1, configs=("dense",))
    _edit(run / "summary.json", lambda d: d.update(matched=[], verdicts=[]))
    page = _Page(write_report(run).read_text())
    assert {"verdict", "table", "provenance"} <= page.ids
    assert page.ids.isdisjoint({"pareto", "matched", "pictures", "steps"})
    with pytest.raises(UsageError, match="to plot"):
        write_pareto_png(run, tmp_path / "pareto.png")


def test_one_method(write_evaluation: Writer, tmp_path: Path) -> None:
    run = write_evaluation(tmp_path, video=False, samples=1, configs=("dense", "cg-2"))
    page = _Page(write_report(run).read_text())
    assert {"pareto", "pictures", "steps"} <= page.ids
    assert write_pareto_png(run, tmp_path / "pareto.png").read_bytes().startswith(b"\x89PNG")


def test_failed_samples_are_seen(run: Path) -> None:
    lines = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    gone = ("taylorseer-6", "p002-s0")
    kept = [row for row in lines if (row["config"], row["sample"]) != gone]
    kept[-1]["finite"] = False
    (run / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in kept))
    failure = {"config": gone[0], "sample": gone[1], "error": "latents hold NaN"}
    (run / "failures.jsonl").write_text(json.dumps(failure) + "\n")
    text = _Page(write_report(run).read_text()).text
    assert "TaylorSeer N=6: 1 of 3 samples failed (latents hold NaN)" in text
    assert "failed: latents hold NaN" in text  # the card in the worst sample's gallery
    assert "cache-dit R=0.2: 1 of 3 samples failed" in text
    assert "TaylorSeer N=6 (1 failed)" in markdown_table(run)


def test_pictures_may_be_deleted(run: Path) -> None:
    shutil.rmtree(run / "media")
    assert "its picture file is not in the folder" in _Page(write_report(run).read_text()).text


def test_step_map_counts_calls(run: Path) -> None:
    text = write_report(run).read_text()
    assert "computed in 3 of 3 samples" in text
    assert "gate error, median" in text
    assert _Page(text).text.count("samples: nothing was skipped") == 0
    rows = [json.loads(line) for line in (run / "results.jsonl").read_text().splitlines()]
    for row in rows:
        row["calls"] = [[0, "cond", "compute", "", None]] if row["config"] == "cg-2" else []
    (run / "results.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    text = _Page(write_report(run).read_text()).text
    assert text.count("samples: nothing was skipped") == 1 and "No step record" in text


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("run.json", None, "run.json"),
        ("run.json", "{", "damaged"),
        ("run.json", '{"schema": 99}', "schema 99"),
        ("run.json", '{"schema": 1}', "earlier version (schema 1)"),
        ("run.json", '{"schema": 2}', "configs is missing"),
        ("summary.json", "[]", "must be an object, not a list"),
        ("results.jsonl", "", "no results yet"),
        ("results.jsonl", '{"config": "dense"}\n', "line 1 is damaged: sample is missing"),
        ("results.jsonl", 'nonsense\n{"config": "dense", "sample": "p"}\n', "line 1"),
        ("media/dense/p000-s0.npz", "not a zip", "damaged"),
    ],
)
def test_damaged_input_is_one_clear_line(
    run: Path, name: str, content: str | None, message: str
) -> None:
    if content is None:
        (run / name).unlink()
    else:
        (run / name).write_text(content)
    with pytest.raises(UsageError) as caught:
        write_report(run)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (run / "report.html").exists()
    assert not list(run.glob("*.tmp"))


def test_no_folder_is_a_clear_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="is not a folder"):
        write_report(tmp_path / "nowhere")


def test_page_stays_small_when_pictures_are_large(
    write_evaluation: Writer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("ditaccel.eval.report.gallery.BUDGET", 60_000)
    run = write_evaluation(tmp_path, video=False, samples=3, size=96)
    text = write_report(run).read_text()
    assert "more pictures were left out" in text
    assert len(text) < 400_000
