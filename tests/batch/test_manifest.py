"""Job files and manifests: what is read, what is refused, and what an id depends on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from job_folders import FACTS, plan
from PIL import Image

from ditaccel.batch import names
from ditaccel.batch.arguments import choose
from ditaccel.batch.audit import key_of
from ditaccel.batch.facts import read_facts
from ditaccel.batch.jobs import RawRow, read_rows
from ditaccel.batch.manifest import Planner, Settings, read_manifest, write_manifest
from ditaccel.batch.rows import check_row
from ditaccel.caching.taylorseer import TaylorSeerConfig
from ditaccel.config import AccelerationConfig, Tuned, dump
from ditaccel.errors import ConfigError, UnsupportedError, UsageError
from ditaccel.io.models import Sheet


def test_every_format_gives_the_same_items(tmp_path: Path) -> None:
    rows = [{"prompt": "a, b", "seed": 3, "steps": 20}, {"prompt": "ü", "size": "832x480"}]
    (tmp_path / "j.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    (tmp_path / "j.csv").write_text('﻿prompt,seed,steps,size\n"a, b",3,20,\nü,,,832x480\n')
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist(
        [{**dict.fromkeys(("prompt", "seed", "steps", "size")), **row} for row in rows]
    )
    parquet.write_table(table, tmp_path / "j.parquet")
    found = {
        suffix: plan(tmp_path, *(r.values for r in read_rows(tmp_path / f"j.{suffix}")))
        for suffix in ("jsonl", "csv", "parquet")
    }
    assert found["jsonl"] == found["csv"] == found["parquet"]
    first, second = found["csv"]
    assert first.call == {"height": 64, "width": 64, "num_inference_steps": 20}
    assert (second.call["width"], second.call["height"]) == (832, 480)
    assert first.negative_prompt == "" and first.name.startswith("a-b-s3-")


def test_txt_takes_prompts_and_leaves_comments(tmp_path: Path) -> None:
    (tmp_path / "j.txt").write_text("# no\n\n a red circle \n")
    assert read_rows(tmp_path / "j.txt") == [RawRow(3, {"prompt": "a red circle"})]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("j.txt", "# nothing\n", "holds no row"),
        ("j.yaml", "a: 1", "a job file ends in"),
        ("j.csv", "prompt,prompt\na,b\n", "name every column once"),
        ("j.csv", "promt,seed\na,1\n", r"j\.csv: unknown column 'promt'.*prompt"),
        ("j.parquet", "no parquet", "not a readable parquet"),
        ("j.jsonl", b"\xff\xfe", "UTF-8"),
    ],
)
def test_unusable_files_are_one_line(tmp_path: Path, name: str, text: Any, words: str) -> None:
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(UsageError, match=words):
        read_rows(tmp_path / name)


def test_a_misspelt_column_of_a_parquet_file_is_one_line(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    table = pytest.importorskip("pyarrow").Table.from_pylist([{"prompt": "a", "sede": 1}])
    parquet.write_table(table, tmp_path / "j.parquet")
    with pytest.raises(UsageError, match=r"unknown column 'sede'.*seed"):
        read_rows(tmp_path / "j.parquet")


def test_a_broken_line_is_a_broken_row(tmp_path: Path) -> None:
    (tmp_path / "j.jsonl").write_text('{"prompt": "a"}\n{"prompt": \n[1]\n')
    rows = read_rows(tmp_path / "j.jsonl")
    assert [bool(r.error) for r in rows] == [False, True, True]
    (tmp_path / "j.csv").write_text("prompt,seed\na,1\na,b,c\nd,2\n")
    assert [bool(r.error) for r in read_rows(tmp_path / "j.csv")] == [False, True, False]


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({}, "no prompt"),
        ({"prompt": 5}, "must be text"),
        ({"prompt": "a", "seed": -1}, "seed is -1"),
        ({"prompt": "a", "seed": "1.5"}, "seed is '1.5'"),
        ({"prompt": "a", "seed": True}, "seed is True"),
        ({"prompt": "a", "steps": 0}, "steps is 0"),
        ({"prompt": "a", "guidance": "nan"}, "guidance is 'nan'"),
        ({"prompt": "a", "size": "big"}, "WIDTHxHEIGHT"),
        ({"prompt": "a", "size": "1x1", "width": 4}, "either size or"),
        ({"prompt": "a", "frames": 5, "num_frames": 6}, "given twice"),
        ({"prompt": "a", "promt": "b"}, "did you mean 'prompt'"),
        ({"prompt": "a", "call": "{"}, "not valid JSON"),
        ({"prompt": "a", "call": {"generator": 1}}, "cannot be set"),
        ({"prompt": "a", "call": {"callback_on_step_end": "os.system"}}, "cannot be set"),
        ({"prompt": "a", "call": {"eta": 1}}, "takes no argument 'eta'"),
        ({"prompt": "a", "video": "x.mp4"}, "no file at x.mp4"),
        ({"prompt": "a", "image": "https://a.b/c.png"}, "allow_remote"),
        ({"prompt": "a", "image": "file:///etc/passwd"}, "file:// is not supported"),
        ({"prompt": "a", "class_label": 1}, "takes no class_label"),
        ({"prompt": "a", "name": "../../b"}, "no file name"),
        ({"prompt": "a", "name": ".hidden"}, "no file name"),
        ({"prompt": "a", "name": "a\x00b"}, "no file name"),
        ({"prompt": "a", "config": "nonsense"}, "no preset 'nonsense'"),
        ({"prompt": "a", "config": "taylorseer:intervall=3"}, "did you mean 'interval'"),
    ],
)
def test_a_bad_row_fails_alone_with_its_reason(
    tmp_path: Path, row: dict[str, Any], words: str
) -> None:
    bad, good = plan(tmp_path, row, {"prompt": "fine"})
    assert words in bad.error and "\n" not in bad.error
    assert not good.error


def test_the_id_depends_on_what_decides_the_output_and_on_nothing_else(tmp_path: Path) -> None:
    row = {"prompt": "a", "seed": 1}
    (first,) = plan(tmp_path, row)
    (again,) = plan(tmp_path, {"seed": "1", "text": "a", "meta": {"split": "x"}}, name="{row}")
    assert again.id == first.id
    picture = tmp_path / "p.png"
    Image.new("RGB", (1, 1)).save(picture)
    others = [
        plan(tmp_path, {**row, "seed": 2}),
        plan(tmp_path, {**row, "prompt": "b"}),
        plan(tmp_path, {**row, "negative": "b"}),
        plan(tmp_path, {**row, "steps": 49}),
        plan(tmp_path, {**row, "fps": 8}),
        plan(tmp_path, row, config="fast"),
        plan(tmp_path, row, config="none"),
        plan(tmp_path, row, crf=20),
        plan(tmp_path, row, save=("mp4", "latents")),
        plan(tmp_path, row, dtype="bfloat16"),
        plan(tmp_path, row, facts=replace(FACTS, fingerprint="g")),
        plan(tmp_path, {**row, "image": "p.png"}),
    ]
    Image.new("RGB", (1, 1), "red").save(picture)
    others.append(plan(tmp_path, {**row, "image": "p.png"}))
    ids = {first.id} | {items[0].id for items in others}
    assert len(ids) == 1 + len(others)
    assert not any(items[0].error for items in others)


def test_a_config_that_was_tuned_again_with_the_same_outcome_makes_nothing_again(tmp_path: Path):
    def planned(**options: Any) -> Any:
        config = AccelerationConfig(cache=TaylorSeerConfig(interval=3), **options)
        dump(config, tmp_path / "tuned.yaml")
        return plan(tmp_path, {"prompt": "a"}, config=str(tmp_path / "tuned.yaml"))[0]

    first, again = planned(tuned=Tuned(prompts=8)), planned(tuned=Tuned(prompts=9, dtype="float32"))
    assert first.id == again.id == planned().id and key_of(first.config) == key_of(again.config)
    assert again.config["tuned"]["prompts"] == 9  # a run that differs is still warned of
    assert planned(scheduler="another").id != first.id


def test_a_config_of_fewer_steps_alone_is_one_for_a_job(tmp_path: Path) -> None:
    for steps in (12, 0.5):
        dump(AccelerationConfig(steps=steps), tmp_path / "steps.yaml")
        row = {"prompt": "a"}
        (item,) = plan(tmp_path, row, config=str(tmp_path / "steps.yaml"))
        assert item.config["steps"] == steps
    dump(AccelerationConfig(), tmp_path / "steps.yaml")
    with pytest.raises(ConfigError, match="names no method"):
        plan(tmp_path, row, config=str(tmp_path / "steps.yaml"))


def test_order_does_not_change_ids_or_names(tmp_path: Path) -> None:
    rows = [{"prompt": p} for p in "abc"]
    one = {(i.id, i.name) for i in plan(tmp_path, *rows)}
    two = {(i.id, i.name) for i in plan(tmp_path, *reversed(rows), {"prompt": "new"})}
    assert one < two


def test_seeds_multiply_rows_without_one(tmp_path: Path) -> None:
    items = plan(tmp_path, {"prompt": "a"}, {"prompt": "b", "seed": 9}, seeds=(0, 4))
    assert [(i.prompt, i.seed) for i in items] == [("a", 0), ("a", 4), ("b", 9)]


def test_repeated_rows_are_made_once(tmp_path: Path) -> None:
    planner = Planner(FACTS, Settings(), tmp_path)
    items, repeated = planner.plan([RawRow(i, {"prompt": "a"}) for i in (1, 2, 3)])
    assert (len(items), repeated) == (1, 2)


def test_two_rows_never_share_a_file(tmp_path: Path) -> None:
    one, two = plan(tmp_path, {"prompt": "A"}, {"prompt": "a"}, name="{prompt}")
    assert not one.error and "that of row 1" in two.error


def test_vbench_names(tmp_path: Path) -> None:
    items = plan(tmp_path, {"prompt": "a cat, sitting/lying"}, seeds=(0, 1), name="vbench")
    assert [i.name for i in items] == ["a cat, sitting lying-0", "a cat, sitting lying-1"]


@pytest.mark.parametrize(
    "template",
    [
        "{prompt.__class__}",
        "{prompt!r}",
        "{prompt:>9}",
        "{0}",
        "{x}",
        "{prompt",
        "../{id}",
        "/{id}",
    ],
)
def test_templates_are_not_evaluated(template: str) -> None:
    with pytest.raises(ConfigError):
        names.check_template(template)


@pytest.mark.parametrize(
    "prompt",
    ["../../etc/passwd", "..", "a/b\\c", "\x00", "C:\\x", "{id}", "~", "x" * 5000, "日本語"],
)
def test_prompts_cannot_lead_out_of_the_folder(tmp_path: Path, prompt: str) -> None:
    for template in (names.DEFAULT, "{prompt}/{text}", "vbench", "sub/{prompt}{id}"):
        (item,) = plan(tmp_path, {"prompt": prompt}, name=template)
        if item.error:
            assert "empty" in item.error
            continue
        path = (tmp_path / item.name).resolve()
        assert path.is_relative_to(tmp_path.resolve()) and path != tmp_path.resolve()
        assert all(len(part.encode()) <= 200 for part in path.parts)
        assert not any(part.startswith(".") for part in item.name.split("/"))


def test_remote_inputs_only_where_allowed(tmp_path: Path) -> None:
    row = check_row(1, {"prompt": "a", "image": "https://a.b/c.png"}, tmp_path, allow_remote=True)
    assert row.inputs == {"image": "https://a.b/c.png"}


def test_pipelines_that_need_an_image_say_so(tmp_path: Path) -> None:
    needs = replace(FACTS, arguments={**FACTS.arguments, "image": False})
    assert plan(tmp_path, {"prompt": "a"}, facts=needs)[0].error == "WanPipeline needs 'image'"


def test_a_row_without_what_its_pipeline_starts_from_fails_while_it_is_planned(
    tmp_path: Path,
) -> None:
    """Image-to-image pipelines declare `image=None` and raise deep inside."""
    facts = replace(FACTS, pipeline="FluxImg2ImgPipeline", starts_from="image")
    Image.new("RGB", (1, 1)).save(tmp_path / "p.png")
    bad, good = plan(tmp_path, {"prompt": "a"}, {"prompt": "a", "image": "p.png"}, facts=facts)
    assert "image: FluxImg2ImgPipeline starts from one" in bad.error and good.error == ""


def test_which_pipelines_start_from_something() -> None:
    from ditaccel.batch.facts import _starts_from

    arguments = {"prompt": False, "image": True, "video": True}
    for name, wanted in {
        "FluxImg2ImgPipeline": "image",
        "LTXImageToVideoPipeline": "image",
        "CogVideoXVideoToVideoPipeline": "video",
        "QwenImageEditPipeline": "image",
        "FluxKontextPipeline": "",
        "WanPipeline": "",
    }.items():
        assert _starts_from(name, arguments) == wanted
    assert _starts_from("FluxImg2ImgPipeline", {"prompt": False}) == ""


def test_classes_by_name_and_number(tmp_path: Path) -> None:
    facts = replace(
        FACTS, pipeline="DiTPipeline", arguments={"class_labels": False}, labels={"cat": 4},
        sheet=Sheet(), family="dit",
    )  # fmt: skip
    named, numbered, wrong, far = plan(
        tmp_path, {"prompt": "cat", "seed": 1}, {"class": "4"}, {"prompt": "dog"}, {"label": 5},
        facts=facts,
    )  # fmt: skip
    assert (named.class_label, numbered.class_label, numbered.prompt) == (4, 4, "cat")
    assert "no class 'dog'" in wrong.error and "no class 5" in far.error


def test_a_unet_runs_dense_only(tmp_path: Path) -> None:
    unet = replace(FACTS, family="", transformer="")
    with pytest.raises(UnsupportedError, match="the config none"):
        plan(tmp_path, {"prompt": "a"}, facts=unet)
    assert plan(tmp_path, {"prompt": "a"}, facts=unet, config="none")[0].config is None


def test_an_unknown_family_has_the_common_presets(tmp_path: Path) -> None:
    unknown = replace(FACTS, family="", transformer="MyTransformer")
    (item,) = plan(tmp_path, {"prompt": "a"}, facts=unknown, config="fast")
    assert item.config is not None and item.config["cache"]["method"] == "adaptive_taylor"


def test_facts_refuse_code_that_comes_with_a_model(tmp_path: Path) -> None:
    (tmp_path / "model_index.json").write_text('{"_class_name": "MyPipeline"}')
    (tmp_path / "pipeline.py").write_text("raise SystemExit('ran')")
    with pytest.raises(UsageError, match="code that comes with a model is never run"):
        read_facts(str(tmp_path))


def test_manifest_round_trip(tmp_path: Path) -> None:
    items = plan(tmp_path, {"prompt": "ü", "meta": {"a": [1]}}, {"prompt": ""}, config="fast")
    write_manifest(tmp_path / "m.jsonl", items)
    assert read_manifest(tmp_path / "m.jsonl") == items
    assert len((tmp_path / "m.jsonl").read_text().splitlines()) == 2


def test_filter_and_limit(tmp_path: Path) -> None:
    rows = [{"prompt": f"{c} {s}", "meta.kind": s} for c in ("red", "blue") for s in ("dot", "bar")]
    items = plan(tmp_path, *rows)
    assert [i.row for i in choose(items, [("prompt", "red*")], None)] == [1, 2]
    assert [i.row for i in choose(items, [("meta.kind", "bar"), ("seed", "0")], 1)] == [2]
    assert [i.row for i in choose(items, [("height", "64")], 3)] == [1, 2, 3]
    with pytest.raises(ConfigError, match="filter 'promt' is not a column"):
        choose(items, [("promt", "*")], None)
    with pytest.raises(ConfigError, match="prompt=zzz: no item matches"):
        choose(items, [("prompt", "zzz")], None)
