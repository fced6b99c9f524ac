"""`blip caption` and `blip match`: what models say of files, folders and tars, in a table."""

import csv
import json
import re
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS, both, captioner, model_folder, picture, samples, text_filter
from tiny_others import clip, git
from typer.testing import CliRunner

import blip.runs.label as label
from blip.cli import app
from blip.config import ConfigError
from blip.runs.label import caption, match
from blip.shards.writing import write_shards

FAST = ("decoding.max_length=8", "batch=4")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Images in folders, one of them broken, and in two tars; models."""
    for i in range(5):
        path = tmp_path / "images" / f"part{i % 2}" / f"{i}.{'PNG' if i else 'png'}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture(i))
    (tmp_path / "images" / "part0" / "0.txt").write_text(TEXTS[0])
    (tmp_path / "images" / "broken.jpg").write_bytes(b"no image")
    (tmp_path / "images" / "notes.md").write_text("not an image")
    write_shards(samples(6), tmp_path / "tars", "web", 4)
    model_folder(both(), tmp_path / "model")
    model_folder(text_filter(), tmp_path / "filter")
    return tmp_path


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_image_of_every_source_has_a_caption_or_a_reason(folder: Path):
    sources = [str(folder / "images"), str(folder / "images" / "part0" / "2.PNG"), str(folder / "tars")]
    model, judge = str(folder / "model"), str(folder / "filter")
    found = caption(sources, model=model, filter=judge, out=folder / "out.jsonl", overrides=FAST)
    rows = lines(folder / "out.jsonl")
    assert [re.sub(r"-\w{8}\.tar", ".tar", row["image"]) for row in rows] == [
        str(folder / "images" / "broken.jpg"),
        *(str(folder / "images" / name) for name in ("part0/0.png", "part0/2.PNG", "part0/4.PNG")),
        *(str(folder / "images" / name) for name in ("part1/1.PNG", "part1/3.PNG", "part0/2.PNG")),
        *(f"web-000000.tar/{i:04d}" for i in range(4)),
        *(f"web-000001.tar/{i:04d}" for i in range(4, 6)),
    ]
    assert rows[0] == {"image": rows[0]["image"], "number": 0, "error": "image cannot be decoded"}
    assert all(row["log_probability"] < 0 and 0 < row["match"] < 1 and -1 <= row["similarity"] <= 1 for row in rows[1:])
    assert rows[2]["caption"] == rows[6]["caption"]
    assert (found.images, found.rows, found.rejected) == (12, 12, {"image cannot be decoded": 1})
    assert 0 < found.seconds < 600
    assert not [path.name for path in folder.iterdir() if path.name.startswith(".")]


def test_linked_folders_are_looked_into_and_hidden_files_are_not(folder: Path):
    linked = folder / "album"
    linked.mkdir()
    (linked / "photos").symlink_to(folder / "images" / "part1")
    (linked / "._1.png").write_bytes(b"of another system")
    caption([str(linked)], model=str(folder / "model"), out=folder / "out.jsonl", overrides=FAST)
    assert [row["image"] for row in lines(folder / "out.jsonl")] == [
        str(linked / "photos" / n) for n in ("1.PNG", "3.PNG")
    ]


def test_a_table_is_json_lines_csv_or_parquet(folder: Path):
    tables = {}
    for ending in ("jsonl", "csv", "parquet"):
        out = folder / f"out.{ending}"
        caption([str(folder / "tars")], model=str(folder / "model"), out=out, overrides=(*FAST, "captions=2"))
    tables["jsonl"] = [(row["image"], row["number"], row["caption"]) for row in lines(folder / "out.jsonl")]
    with (folder / "out.csv").open(encoding="utf-8", newline="") as file:
        tables["csv"] = [(row["image"], int(row["number"]), row["caption"]) for row in csv.DictReader(file)]
    found = pq.read_table(folder / "out.parquet")
    tables["parquet"] = [(row["image"], row["number"], row["caption"]) for row in found.to_pylist()]
    assert tables["jsonl"] == tables["csv"] == tables["parquet"]
    assert len(tables["csv"]) == 12
    assert found["match"].null_count == 12
    with pytest.raises(ConfigError, match=r"out\.txt: must end in \.jsonl, \.csv, \.parquet"):
        caption([str(folder / "tars")], model=str(folder / "model"), out=folder / "out.txt")


def test_an_interrupted_call_goes_on_where_it_was(folder: Path, monkeypatch: pytest.MonkeyPatch):
    sources, model = [str(folder / "images"), str(folder / "tars")], str(folder / "model")
    caption(sources, model=model, out=folder / "whole.jsonl", overrides=FAST)
    shown: list[int] = []
    in_order = label.rows_in_order

    def counted(part, rows):
        shown.append(len(part))
        if len(shown) == 2:
            raise KeyboardInterrupt
        return in_order(part, rows)

    monkeypatch.setattr(label, "rows_in_order", counted)
    with pytest.raises(KeyboardInterrupt):
        caption(sources, model=model, out=folder / "out.jsonl", overrides=FAST)
    assert not (folder / "out.jsonl").exists()
    with (folder / ".out.jsonl.partial").open("a", encoding="utf-8") as file:
        file.write('[{"image": "half a li')  # a machine that lost its power
    caption(sources, model=model, out=folder / "out.jsonl", overrides=FAST)
    assert sum(shown[2:]) == 12 - 4
    assert lines(folder / "out.jsonl") == lines(folder / "whole.jsonl")


def test_what_was_begun_with_other_settings_is_begun_anew(folder: Path):
    head = json.dumps({"of": "something else"})
    (folder / ".out.jsonl.partial").write_text(f'{head}\n[{{"image": "none"}}]\n')
    caption([str(folder / "tars")], model=str(folder / "model"), out=folder / "out.jsonl", overrides=FAST)
    assert "none" not in {row["image"] for row in lines(folder / "out.jsonl")}


def test_texts_are_given_or_lie_beside_the_images(folder: Path):
    model = str(folder / "filter")
    match([str(folder / "images")], TEXTS[:2], model=model, out=folder / "given.jsonl", overrides=FAST)
    given = lines(folder / "given.jsonl")
    assert [row["text"] for row in given if "text" in row] == TEXTS[:2] * 5
    found = match([str(folder / "images")], [], model=model, out=folder / "beside.jsonl", overrides=FAST)
    beside = {row["image"]: row for row in lines(folder / "beside.jsonl")}
    assert beside[str(folder / "images" / "part0" / "0.png")]["match"] == given[1]["match"]
    assert found.rejected == {"no text beside it": 4, "image cannot be decoded": 1}
    match([str(folder / "tars")], [], model=model, out=folder / "tars.jsonl", overrides=FAST)
    assert [row["text"] for row in lines(folder / "tars.jsonl")] == [sample.texts[0] for sample in samples(6)]


def test_others_models_caption_and_match(folder: Path):
    writer, judge = str(git(folder / "git")), str(clip(folder / "clip"))
    settings = ("decoding={type: beam, max_length: 8}", "captioner.batch=3", "filter.template='a {}'")
    caption([str(folder / "tars")], model=writer, filter=judge, out=folder / "out.jsonl", overrides=settings)
    rows = lines(folder / "out.jsonl")
    assert len(rows) == 6
    assert all("similarity" in row and "match" not in row and row["log_probability"] < 0 for row in rows)


def test_the_command_line_shows_matches_best_first(folder: Path):
    image = str(folder / "images" / "part0" / "0.png")
    done = CliRunner().invoke(app, ["match", image, *TEXTS[:3], "--model", str(folder / "filter"), "--json"])
    assert done.exit_code == 0, done.output
    rows = json.loads(done.stdout)["rows"]
    assert {row["text"] for row in rows} == {*TEXTS[:3]}
    assert [row["match"] for row in rows] == sorted((row["match"] for row in rows), reverse=True)
    out = folder / "captions.csv"
    called = ["caption", str(folder / "tars"), "--model", str(folder / "model"), "--out", str(out)]
    done = CliRunner().invoke(app, [*called, "--json", "--set", "decoding.max_length=8"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["rows"] == 6


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["caption", "none.tar", "--model", "{model}", "--out", "o.jsonl"], "none.tar: no such file or folder"),
        (["caption", "{empty}", "--model", "{model}", "--out", "o.jsonl"], "holds no image (jpeg, jpg"),
        (["caption", "{readme}", "--model", "{model}", "--out", "o.jsonl"], "is no image"),
        (["caption", "{tars}", "--model", "{filter}", "--out", "o.jsonl"], "the captioner must be trained for"),
        (["match", "{tars}", "a", " ", "--model", "{filter}"], "a text is empty; give words"),
        (["match", "{tars}", "a", "--model", "{captioner}"], "the filter must be trained for"),
        (["caption", "{tars}", "--model", "{model}", "--out", "o.jsonl", "--set", "bach=3"], "did you mean batch"),
        (["caption", "{tars}", "--model", "./none", "--out", "o.jsonl"], "no such file or folder"),
    ],
)
def test_mistakes_are_one_line(folder: Path, arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(folder)
    model_folder(captioner(), folder / "captioner")
    places = {name: str(folder / name) for name in ("model", "filter", "captioner", "tars")}
    (folder / "empty").mkdir()
    places["empty"] = str(folder / "empty")
    places["readme"] = str(folder / "images" / "notes.md")
    done = CliRunner().invoke(app, [argument.format(**places) for argument in arguments])
    assert done.exit_code != 0
    assert message in done.output
    assert len(done.stderr.strip().splitlines()) == 1
