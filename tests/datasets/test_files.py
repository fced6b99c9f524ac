"""A folder of images with a table, or with texts beside them, is ingested as it is."""

import csv
import json
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS, picture

from blip.config import ConfigError
from blip.datasets.files import MISSING, OUTSIDE, Files, read_files
from blip.runs.context import RunContext
from blip.runs.ingest import ingest, with_source
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

ROWS = [("a/0.JPG", TEXTS[0]), ("a/0.JPG", TEXTS[1]), ("1.png", TEXTS[2]), ("gone.png", "nowhere"), ("../2.png", "up")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, in a folder and below it."""
    path = tmp_path / "images"
    (path / "a").mkdir(parents=True)
    (path / "a" / "0.JPG").write_bytes(picture(0, (32, 32), format="JPEG"))
    (path / "1.png").write_bytes(picture(1))
    return path


def write_table(folder: Path, ending: str) -> None:
    columns = ("file_name", "caption")
    path = folder / f"table.{ending}"
    match ending:
        case "csv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file).writerows([columns, *ROWS])
        case "jsonl":
            path.write_text("".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in ROWS))
        case _:
            pq.write_table(pa.Table.from_pylist([dict(zip(columns, row, strict=True)) for row in ROWS]), path)


@pytest.mark.parametrize("ending", ["csv", "jsonl", "parquet"])
def test_a_table_names_images_and_their_texts(folder: Path, ending: str):
    write_table(folder, ending)
    counts: Counter[str] = Counter()
    found = list(read_files(Files(path=str(folder)), counts))
    assert [(sample.meta["file"], sample.texts, sample.image_ext) for sample in found] == [
        ("a/0.JPG", TEXTS[:2], "jpg"),
        ("1.png", TEXTS[2:3], "png"),
    ]
    assert found[1].images == [picture(1)]
    assert counts == {MISSING: 1, OUTSIDE: 1}


def test_texts_lie_beside_images(folder: Path):
    (folder / "1.caption").write_text(TEXTS[3])
    (folder / "a" / "0.txt").write_text(TEXTS[4])
    found = list(read_files(Files(path=str(folder)), Counter()))
    assert {sample.meta["file"]: sample.texts for sample in found} == {"1.png": [TEXTS[3]], "a/0.JPG": [TEXTS[4]]}


def test_columns_are_guessed_or_named_and_lists_are_texts(folder: Path):
    rows = [{"picture": "1.png", "says": [TEXTS[0], TEXTS[1]]}]
    (folder / "table.jsonl").write_text("\n".join(map(json.dumps, rows)))
    with pytest.raises(ConfigError, match=r"which column is the image\? Set data\.image_field to one of picture, says"):
        list(read_files(Files(path=str(folder)), Counter()))
    named = Files(path=str(folder), image_field="picture", text_field="says")
    assert [sample.texts for sample in read_files(named, Counter())] == [TEXTS[:2]]
    (folder / "other.csv").write_text("image,text\n")
    with pytest.raises(ConfigError, match=r"holds several tables \(other\.csv, table\.jsonl\); set data\.table"):
        list(read_files(Files(path=str(folder)), Counter()))
    (folder / "table.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"table\.jsonl: cannot be read as jsonl"):
        list(read_files(Files(path=str(folder), table="table.jsonl"), Counter()))


def test_one_set_is_split_by_how_images_look(tmp_path: Path):
    images = tmp_path / "images"
    images.mkdir()
    for i in range(60):
        data = picture(i % 30, (24, 24))  # each comes twice
        (images / f"{i:02d}.png").write_bytes(data)
        (images / f"{i:02d}.txt").write_text(TEXTS[i % len(TEXTS)])
    (images / "broken.png").write_bytes(b"no image")
    (images / "silent.png").write_bytes(picture(99))
    context = RunContext(preset="shapes", store=str(tmp_path / "store"), overrides=("data.test=0.3",))
    result = ingest(context, str(images), out=tmp_path / "data")
    assert result.splits["web"].samples + result.splits["test"].samples == 60
    assert result.splits["gold"].samples == result.splits["web"].samples
    assert 6 <= result.splits["test"].samples <= 32
    assert result.splits["web"].counts == {"image cannot be decoded": 1, "no text": 1}
    read = {
        split: {sample.images[0] for sample in samples(Manifest.load(tmp_path / "data" / f"{split}.json"))}
        for split in ("web", "test")
    }
    assert not read["web"] & read["test"]
    again = ingest(context, str(images), out=tmp_path / "again")
    assert again.splits == result.splits


def test_a_folder_is_recognised(folder: Path):
    assert with_source(str(folder), ["data.test=0.2"])[:2] == ["data.type=files", f'data.path="{folder}"']
    with pytest.raises(ConfigError, match="no such folder; name the folder of images"):
        list(read_files(Files(path=str(folder / "none")), Counter()))
