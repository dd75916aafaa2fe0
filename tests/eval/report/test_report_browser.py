"""The report in a real browser: it loads nothing, everything in it decodes, the script runs."""

import base64
import json
import os
import re
import shutil
import subprocess
from collections.abc import Callable
from html import unescape
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from ditaccel.eval.report import jobs, media
from ditaccel.eval.report.page import write_report
from ditaccel.eval.report.shell import document, write_text

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
BROWSER = next((path for name in BROWSERS if (path := shutil.which(name))), None)
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
    "--disable-dev-shm-usage", "--host-resolver-rules=MAP * ~NOTFOUND",
)  # fmt: skip

pytestmark = [
    pytest.mark.skipif(BROWSER is None, reason=f"no browser found (looked for {BROWSERS})"),
    pytest.mark.xdist_group("browser"),
]

# Runs before the page's own script. The page's policy allows inline script, so the probe needs no
# way around it; what it saw is left in the document for --dump-dom.
PROBE = """<script>
const seen = {errors: [], blocked: []};
addEventListener("error", (e) => seen.errors.push(String(e.message || e.target.tagName)), true);
addEventListener("unhandledrejection", (e) => seen.errors.push(String(e.reason)));
document.addEventListener("securitypolicyviolation", (e) => seen.blocked.push(e.blockedURI));
const logged = console.error;
console.error = (...args) => { seen.errors.push(args.join(" ")); logged(...args); };
addEventListener("load", async () => {
  const videos = [...document.querySelectorAll("video")];
  for (let i = 0; i < 100 && videos.some((v) => v.readyState < 2); i++)
    await new Promise((done) => setTimeout(done, 100));
  seen.videos = videos.map((v) => [v.readyState, v.duration, v.videoWidth, v.controls, v.muted]);
  seen.images = [...document.images].map((i) => i.complete && i.naturalWidth > 0);
  seen.resources = performance.getEntriesByType("resource").map((r) => r.name);
  seen.hidden = [...document.querySelectorAll(".scroll")]
    .map((s) => s.scrollWidth - s.clientWidth);
  seen.height = document.documentElement.scrollHeight;
  seen.overflow = document.documentElement.scrollWidth - document.documentElement.clientWidth;
  const table = document.querySelector("#figures");
  const column = [...table.querySelectorAll("thead th")]
    .findIndex((h) => h.textContent.startsWith("speed-up"));
  const values = () => [...table.tBodies[0].rows].map((r) => Number(r.children[column].dataset.v));
  table.querySelectorAll("thead button")[column].click();
  seen.falling = values();
  table.querySelectorAll("thead button")[column].click();
  seen.rising = values();
  const point = document.querySelector(".plot .point");
  point.dispatchEvent(new PointerEvent("pointerover", {bubbles: true}));
  seen.tip = document.getElementById("tip").textContent;
  const others = document.querySelectorAll(".card:not(.dense) img.frame:not(.heat)");
  if (others.length) {
    const dense = document.querySelector(".card.dense img.frame").src;
    const own = others[0].src;
    others[0].dispatchEvent(new PointerEvent("pointerdown"));
    const held = others[0].src;
    others[0].dispatchEvent(new PointerEvent("pointerup"));
    seen.swap = held === dense && others[0].src === own;
  }
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify(seen);
  document.body.append(result);
});
</script>"""


def _browse(report: Path, folder: Path, width: int, probe: str = PROBE) -> dict[str, Any]:
    page = folder / "probed.html"
    page.write_text(report.read_text().replace("</head>", probe + "</head>", 1))
    done = subprocess.run(
        [
            str(BROWSER), *FLAGS, f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},1000",
            "--virtual-time-budget=20000", "--dump-dom", page.as_uri(),
        ],
        capture_output=True, text=True, timeout=120, env={**os.environ, "HOME": str(folder)},
    )  # fmt: skip
    found = re.search(r'<pre id="probe">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found, f"the page never finished loading\n{done.stderr[-2000:]}"
    return json.loads(unescape(found.group(1)))


@pytest.fixture(scope="module", params=["video", "pictures"])
def seen(
    request: pytest.FixtureRequest,
    write_evaluation: Callable[..., Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("browser")
    few = ("dense", "other-seed", "steps-10", "taylorseer-3", "cg-2", "peer-1")
    video = request.param == "video"
    run = write_evaluation(folder / "run", video=video, samples=2, configs=few)
    return {"video": video, **_browse(write_report(run), folder, width=1280)}


def test_no_error_and_nothing_blocked(seen: dict[str, Any]) -> None:
    assert seen["errors"] == []
    assert seen["blocked"] == []


def test_nothing_is_loaded_from_anywhere(seen: dict[str, Any]) -> None:
    assert [name for name in seen["resources"] if not name.startswith("data:")] == []


def test_pictures_and_videos_decode(seen: dict[str, Any]) -> None:
    assert seen["images"] and all(seen["images"])
    assert bool(seen["videos"]) == seen["video"]
    for ready, duration, width, controls, muted in seen["videos"]:
        assert ready >= 2 and width >= 200
        assert duration == pytest.approx(17 / 8, abs=0.2)
        assert not controls and muted  # the script has taken them over


def test_table_sorts_both_ways(seen: dict[str, Any]) -> None:
    assert seen["falling"] == sorted(seen["falling"], reverse=True)
    assert seen["rising"] == sorted(seen["rising"])
    assert len(set(seen["rising"])) > 2


def test_tooltips_and_press_to_compare(seen: dict[str, Any]) -> None:
    assert "× dense's speed" in seen["tip"]
    assert seen["video"] or seen["swap"]


@pytest.mark.parametrize("width", [500, 1600])
def test_page_never_scrolls_sideways(
    width: int, write_evaluation: Callable[..., Path], tmp_path: Path
) -> None:
    run = write_evaluation(tmp_path / "run", video=False, samples=1)
    assert _browse(write_report(run), tmp_path, width)["overflow"] <= 0


def test_a_wide_screen_shows_every_column_and_long_parts_are_folded(
    write_evaluation: Callable[..., Path], tmp_path: Path
) -> None:
    """At 1600 px the table ended after SSIM, beside 450 px of nothing; 4 prompts took 10,200 px."""
    run = write_evaluation(tmp_path / "run", video=False, samples=4)
    seen = _browse(write_report(run), tmp_path, 1600)
    assert seen["hidden"] and max(seen["hidden"]) <= 0
    assert seen["height"] < 7000
    assert (run / "report.html").read_text().count("<details") >= 5


PLAYS = """<script>
addEventListener("load", async () => {
  const video = document.querySelector("video");
  const still = video.readyState;
  document.querySelector("details.clip").open = true;
  // Timers run in virtual time, decoding does not: the loop inside lets real time pass.
  for (let i = 0; i < 150 && video.readyState < 2; i++) {
    for (let j = 0, x = 0; j < 3e7; j++) x += j;
    await new Promise((done) => setTimeout(done, 100));
  }
  const result = document.createElement("pre");
  result.id = "probe";
  result.textContent = JSON.stringify({still, ready: video.readyState, width: video.videoWidth});
  document.body.append(result);
});
</script>"""


def test_videos_of_a_job_play_in_place(tmp_path: Path) -> None:
    """The page's policy lets it read the clips that lie beside it, and nothing before a click."""
    frames = np.zeros((9, 16, 16, 3), np.uint8)
    uri = media.encode_video(frames, 8)
    (tmp_path / "outputs").mkdir()
    (tmp_path / "outputs" / "a b.webm").write_bytes(base64.b64decode(uri.split(",")[1]))
    clip = jobs.clip("outputs/a%20b.webm", "a red circle")
    page = write_text(tmp_path / "gallery.html", document("job", "", clip, own_media=True))
    seen = _browse(page, tmp_path, 800, PLAYS)
    assert seen["still"] == 0 and seen["ready"] >= 2 and seen["width"] > 0
