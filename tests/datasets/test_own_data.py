"""Own data are recognised by their files in every usual form, and every image is read or counted by reason."""

import csv
import gzip
import io
import json
import tarfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from tiny_models import TEXTS, picture

from blip.config import ConfigError
from blip.datasets.own import Files, Form, forms_of
from blip.datasets.own.place import ADDRESS, AMBIGUOUS, MISSING
from blip.datasets.own.rows import BAD_ROW
from blip.datasets.own.tables import NO_IMAGE
from blip.shards.sample import BadSample
from blip.shards.verification import ShardError

HERE = Path(__file__).parent
ROWS = [("a/0.JPG", TEXTS[0]), ("a/0.JPG", TEXTS[1]), ("1.png", TEXTS[2]), ("gone.png", "nowhere"), ("../2.png", "up")]


def read(*paths: Path | str, **settings: str) -> tuple[dict[str, list[str]], Counter[str], list[Form]]:
    """Returns the texts by file, what was left out by reason, and the forms."""
    forms = forms_of(Files(path=tuple(map(str, paths)), **settings))  # pyright: ignore[reportArgumentType]
    counts: Counter[str] = Counter()
    found = {}
    for form in forms:
        for group in form.groups(counts):
            for entry in group:
                try:
                    sample = entry.load()
                except BadSample as error:
                    counts[str(error)] += 1
                    continue
                assert sample.images[0].startswith((b"\x89PNG", b"\xff\xd8")), sample.meta
                found[sample.meta["file"]] = sample.texts if not sample.text_fault else sample.text_fault
    return found, counts, forms


def splits_of(form: Form) -> dict[str, str]:
    return {entry.name: entry.split for group in form.groups(Counter()) for entry in group}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two images, in a folder and below it."""
    path = tmp_path / "images"
    (path / "a").mkdir(parents=True)
    (path / "a" / "0.JPG").write_bytes(picture(0, (32, 32), format="JPEG"))
    (path / "1.png").write_bytes(picture(1))
    return path


def write_table(path: Path, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    dicts = [dict(zip(columns, row, strict=True)) for row in rows]
    match path.suffix:
        case ".csv" | ".tsv":
            with path.open("w", newline="", encoding="utf-8") as file:
                csv.writer(file, delimiter="," if path.suffix == ".csv" else "\t").writerows([columns, *rows])
        case ".jsonl":
            path.write_text("".join(json.dumps(row) + "\n" for row in dicts))
        case _:
            pq.write_table(pa.Table.from_pylist(dicts), path)


def write_tar(path: Path, *members: tuple[str, bytes]) -> None:
    with tarfile.open(path, "w:gz" if path.suffix in (".gz", ".tgz") else "w") as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


@pytest.mark.parametrize("ending", ["csv", "tsv", "jsonl", "parquet"])
def test_a_table_names_images_and_their_texts(folder: Path, ending: str):
    write_table(folder / f"table.{ending}", ("file_name", "caption"), ROWS)
    found, counts, (form,) = read(folder)
    assert found == {"a/0.JPG": TEXTS[:2], "1.png": TEXTS[2:3]}
    assert counts == {MISSING: 2}
    assert form.settings == {
        "form": "table",
        "table": f"table.{ending}",
        "image_field": "file_name",
        "text_field": "caption",
    }
    assert read(folder / f"table.{ending}")[0] == found  # the table itself is named


def test_texts_lie_beside_images(folder: Path):
    (folder / "1.caption").write_text(TEXTS[3])
    (folder / "a" / "0.txt").write_text(TEXTS[4])
    (folder / "photo.v2.12.JPEG").write_bytes(picture(2, (32, 32), format="JPEG"))
    (folder / "photo.v2.12.json").write_text(json.dumps({"caption": TEXTS[5], "alt": TEXTS[0]}))
    (folder / "lone.txt").write_text("no image of this name")
    found, counts, (form,) = read(folder)
    assert found == {"1.png": [TEXTS[3]], "a/0.JPG": [TEXTS[4]], "photo.v2.12.JPEG": [TEXTS[5]]}
    assert counts == {"no image": 1}
    assert form.words == "3 images with texts beside them (.txt, .caption, .json)"
    named, _, _ = read(folder, text_field="alt")
    assert named == {"1.png": [], "a/0.JPG": [], "photo.v2.12.JPEG": [TEXTS[0]]}
    # a pattern, as of a shell, chooses images and finds their texts
    assert read(folder / "*.png")[0] == read(folder / "1.png")[0] == {"1.png": [TEXTS[3]]}
    assert set(read(*sorted(folder.glob("*.[pJ]*")))[0]) == {"1.png", "photo.v2.12.JPEG"}


def test_columns_are_guessed_or_named(folder: Path):
    write_table(folder / "table.csv", ("n", "picture", "says"), [(1, "1.png", json.dumps(TEXTS[:2]))])
    with pytest.raises(
        ConfigError, match=r"which column is the text\? Set data\.text_field to one of n, picture, says"
    ):
        read(folder)
    found, _, (form,) = read(folder, text_field="says")
    assert found == {"1.png": TEXTS[:2]}
    assert form.settings["image_field"] == "picture"  # by what is in it
    with pytest.raises(ConfigError, match=r"there is no column 'tells' Set data\.text_field to one of n, picture"):
        read(folder, text_field="tells")
    (folder / "other.csv").write_text("image,text\n1.png,one\n")
    with pytest.raises(ConfigError, match=r"holds several tables \(other\.csv, table\.csv\); set data\.table"):
        read(folder)
    assert read(folder, table="other.csv")[0] == {"1.png": ["one"]}
    with pytest.raises(ConfigError, match=r"data\.table 'no\.csv': there is no"):
        read(folder, table="no.csv")


def test_several_columns_are_several_texts(folder: Path):
    write_table(folder / "t.parquet", ("image", "caption_1", "caption_2"), [("1.png", TEXTS[0], TEXTS[1])])
    found, _, (form,) = read(folder)
    assert found == {"1.png": TEXTS[:2]}
    assert form.settings["text_field"] == "caption"
    assert read(folder, text_field="caption")[0] == found
    assert read(folder, text_field="caption_2")[0] == {"1.png": TEXTS[1:2]}


def test_broken_rows_are_counted_and_a_broken_table_is_named(folder: Path):
    (folder / "t.jsonl").write_text(f'{{"image": "1.png", "text": "{TEXTS[0]}"}}\n{{\n[1]\n{{"text": "alone"}}\n')
    found, counts, _ = read(folder)
    assert found == {"1.png": TEXTS[:1]}
    assert counts == {BAD_ROW: 2, NO_IMAGE: 1}
    (folder / "t.jsonl").write_text("{")
    with pytest.raises(ConfigError, match=r"t\.jsonl: cannot be read as jsonl"):
        read(folder)
    (folder / "t.jsonl").unlink()
    (folder / "t.parquet").write_bytes(b"PAR1 is cut")
    with pytest.raises(ConfigError, match=r"t\.parquet: cannot be read as parquet"):
        read(folder)
    (folder / "t.parquet").unlink()


def test_images_are_found_by_the_end_of_their_path(folder: Path):
    (folder / "b").mkdir()
    (folder / "b" / "0.jpg").write_bytes(picture(3, (32, 32), format="JPEG"))
    rows = [
        (f"{folder}/1.png", "whole path"),
        ("A/0.jpg", "another case"),
        ("1", "without its extension"),
        ("0.jpg", "two have this name"),
        ("c/1.png", "another folder's"),
        ("http://server/1.png", "on the web"),
        ("/elsewhere/1.png", "another place"),
    ]
    write_table(folder / "t.csv", ("path", "text"), rows)
    found, counts, _ = read(folder)
    assert found == {"1.png": ["without its extension"], "a/0.JPG": ["another case"]}
    assert counts == {AMBIGUOUS: 1, MISSING: 2, ADDRESS: 1}


@pytest.mark.parametrize("name", ["results_20130124.token", "results.csv", "captions.txt"])
def test_the_tables_of_flickr_are_read(tmp_path: Path, name: str):
    texts = {f"{i}.jpg": [f'A dog\'s "{i}" , {n}' for n in range(2)] for i in range(2)}
    pairs = [(image, n, text) for image, of_image in texts.items() for n, text in enumerate(of_image)]
    lines = {
        "results_20130124.token": [f"{image}#{n}\t{text}" for image, n, text in pairs],
        "results.csv": [
            "image_name| comment_number| comment",
            *(f"{image}| {n}| {text}" for image, n, text in pairs),
        ],
        "captions.txt": ["image,caption", *(f"{image},{text}" for image, _, text in pairs)],
    }[name]
    (tmp_path / name).write_text("\n".join(lines) + "\n")
    (tmp_path / "flickr30k-images").mkdir()
    for image in texts:
        (tmp_path / "flickr30k-images" / image).write_bytes(picture(0, (32, 32), format="JPEG"))
    found, counts, _ = read(tmp_path)
    assert found == {f"flickr30k-images/{image}": of_image for image, of_image in texts.items()}
    assert not counts


def test_coco_is_read_from_its_folder_or_its_file(tmp_path: Path):
    (tmp_path / "annotations").mkdir()
    for split, first in (("train2017", 0), ("val2017", 2)):
        (tmp_path / split).mkdir()
        images = [{"id": i, "file_name": f"{i:012d}.jpg"} for i in range(first, first + 2)]
        for image in images:
            (tmp_path / split / image["file_name"]).write_bytes(picture(image["id"], (32, 32), format="JPEG"))
        annotations = [{"image_id": i["id"], "caption": f"{n} of {i['id']}"} for n in range(2) for i in images]
        content = {"info": {}, "images": images, "annotations": annotations}
        (tmp_path / "annotations" / f"captions_{split}.json").write_text(json.dumps(content))
        (tmp_path / "annotations" / f"instances_{split}.json").write_text(json.dumps({"images": images}))
    found, counts, (form,) = read(tmp_path)
    assert found == {f"{'val' if i > 1 else 'train'}2017/{i:012d}.jpg": [f"0 of {i}", f"1 of {i}"] for i in range(4)}
    assert not counts
    assert "captions as COCO's" in form.words
    assert list(splits_of(form).values()) == ["train"] * 2 + ["val"] * 2
    one, _, _ = read(tmp_path / "annotations" / "captions_val2017.json")
    assert one == {name: texts for name, texts in found.items() if name.startswith("val")}


@pytest.mark.parametrize("name", ["dataset_coco.json", "dataset_flickr30k.json", "splits.json"])
def test_karpathys_splits_are_read(tmp_path: Path, name: str):
    images = [
        {
            "filepath": "val2014",
            "filename": f"{i}.jpg",
            "split": split,
            "cocoid": i,
            "sentences": [{"raw": f"text {i}"}],
        }
        for i, split in enumerate(["train", "restval", "val", "test"])
    ]
    (tmp_path / name).write_text(json.dumps({"images": images, "dataset": "coco"}))
    (tmp_path / "val2014").mkdir()
    for i in range(4):
        (tmp_path / "val2014" / f"{i}.jpg").write_bytes(picture(i, (32, 32), format="JPEG"))
    found, _, (form,) = read(tmp_path)
    assert found == {f"val2014/{i}.jpg": [f"text {i}"] for i in range(4)}
    assert Counter(splits_of(form).values()) == {"train": 2, "val": 1, "test": 1}


def test_a_folder_of_the_datasets_library_is_read(tmp_path: Path):
    # written by save_to_disk and to_parquet of datasets 5.2
    found, _, (form,) = read(HERE / "saved_splits")
    assert found["train/data-00000-of-00001.arrow/3"] == ["a drawing 3", "shape 3"]
    assert Counter(splits_of(form).values()) == {"train": 4, "test": 2}
    assert form.settings["form"] == "datasets"
    assert len(read(HERE / "saved_splits" / "test")[0]) == 2
    hub, _, (form,) = read(HERE / "hub")
    assert list(hub.values()) == [[f"a drawing {i}", f"shape {i}"] for i in range(3)]
    assert form.total == 3
    (tmp_path / "imagefolder" / "train").mkdir(parents=True)
    (tmp_path / "imagefolder" / "test").mkdir()
    for split in ("train", "test"):
        (tmp_path / "imagefolder" / split / "0.png").write_bytes(picture(len(split)))
        write_table(tmp_path / "imagefolder" / split / "metadata.jsonl", ("file_name", "text"), [("0.png", split)])
    found, _, (form,) = read(tmp_path / "imagefolder")
    assert found == {"train/0.png": ["train"], "test/0.png": ["test"]}
    assert set(splits_of(form).values()) == {"train", "test"}


def test_what_img2dataset_writes_is_read_in_each_of_its_formats(tmp_path: Path):
    records = [{"url": "http://a/0.jpg", "caption": TEXTS[i], "key": f"{i:05d}", "status": "success"} for i in range(2)]
    for place in ("tars", "files", "parquet"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "00000_stats.json").write_text(json.dumps({"count": 2, "successes": 2}))
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "tars" / "00000.parquet")
    pq.write_table(pa.Table.from_pylist(records), tmp_path / "files" / "00000.parquet")
    jpegs = [picture(i, (32, 32), format="JPEG") for i in range(2)]
    members = [
        (f"{i:05d}.{ending}", data)
        for i in range(2)
        for ending, data in (("jpg", jpegs[i]), ("txt", TEXTS[i].encode()), ("json", json.dumps(records[i]).encode()))
    ]
    write_tar(tmp_path / "tars" / "00000.tar", *members)
    (tmp_path / "files" / "00000").mkdir()
    for name, data in members:
        (tmp_path / "files" / "00000" / name).write_bytes(data)
    whole = [record | {"jpg": jpegs[i]} for i, record in enumerate(records)]
    pq.write_table(pa.Table.from_pylist(whole), tmp_path / "parquet" / "00000.parquet")
    for place, said in (
        ("tars", "2 records of img2dataset beside them are not read"),
        ("files", "2 images with texts"),
    ):
        found, _, (form,) = read(tmp_path / place)
        assert list(found.values()) == [[text] for text in TEXTS[:2]]
        assert said in form.words
    (tmp_path / "parquet" / "00000_stats.json").unlink()
    assert list(read(tmp_path / "parquet")[0].values()) == [[text] for text in TEXTS[:2]]


def test_compressed_tars_are_read_and_broken_ones_are_a_share(tmp_path: Path):
    for i, name in enumerate(("a.tar.gz", "b.tgz", "c.tar")):
        write_tar(tmp_path / name, (f"x.y{i}.PNG", picture(i)), (f"x.y{i}.caption", TEXTS[i].encode()))
    found, _, (form,) = read(tmp_path)
    assert found == {f"{name}/x.y{i}": [TEXTS[i]] for i, name in enumerate(("a.tar.gz", "b.tgz", "c.tar"))}
    assert form.words == "3 tars, 2 of them compressed"
    whole = (tmp_path / "a.tar.gz").read_bytes()
    (tmp_path / "a.tar.gz").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "b.tgz").write_bytes(gzip.compress(b"no tar"))
    with pytest.raises(ShardError, match=r"1 of 3 tars cannot be read, more than data\.lost=0 allows:\n.*a\.tar\.gz"):
        read(tmp_path)
    found, counts, _ = read(tmp_path, lost=0.7)  # pyright: ignore[reportArgumentType]
    assert set(found) == {"c.tar/x.y2"}
    assert counts == {"tar that cannot be read": 2}


def test_several_sources_are_one_set(folder: Path, tmp_path: Path):
    (folder / "1.txt").write_text(TEXTS[0])
    write_tar(tmp_path / "more.tar", ("0.png", picture(5)), ("0.txt", TEXTS[1].encode()))
    memory = fsspec.filesystem("memory")
    memory.pipe_file("/own/t.csv", b"image,text\nx.png,from afar\n")
    memory.pipe_file("/own/x.png", picture(6))
    try:
        found, _, forms = read(folder, tmp_path / "more.tar", "memory://own")
    finally:
        memory.rm("/own", recursive=True)
    assert found == {"1.png": [TEXTS[0]], "a/0.JPG": [], "more.tar/0": [TEXTS[1]], "x.png": ["from afar"]}
    assert len(forms) == 3
    with pytest.raises(ConfigError, match="is named twice"):
        read(folder, folder)


def test_what_is_not_known_is_said_with_what_is(tmp_path: Path):
    (tmp_path / "notes.pdf").write_bytes(b"%PDF")
    with pytest.raises(
        ConfigError, match=r"holds no data that are known \(there are 1 \.pdf\); name images with a table"
    ):
        read(tmp_path)
    with pytest.raises(ConfigError, match="nothing is there; name files, a folder"):
        read(tmp_path / "none")
    with pytest.raises(ConfigError, match=r"holds no JSON with captions, which data\.form asks for"):
        read(tmp_path, form="annotations")
