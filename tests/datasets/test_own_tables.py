"""Tables as people have them: any encoding, images anywhere, and no change of an image unseen."""

import base64
import io
import json
from collections import Counter
from pathlib import Path

import fsspec
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from tiny_models import TEXTS, picture

from blip.config import ConfigError, validate
from blip.datasets.own import Files, Form, forms_of
from blip.datasets.own.place import OUTSIDE
from blip.runs.plan import plan
from blip.shards.sample import BadSample
from blip.storage.remote import RemoteStore


def read(path: Path | str, **settings: str) -> tuple[dict[str, list[str]], Counter[str], Form]:
    """Returns the texts by file, what was left out by reason, and the form."""
    (form,) = forms_of(validate(Files, {"path": str(path), **settings}, "data"))
    counts: Counter[str] = Counter()
    found = {}
    for entry in (entry for group in form.groups(counts) for entry in group):
        try:
            sample = entry.load()
        except BadSample as error:
            counts[str(error)] += 1
            continue
        found[sample.meta["file"]] = sample.texts or sample.text_fault
    return found, counts, form


def images(folder: Path, count: int = 3) -> Path:
    folder.mkdir(parents=True)
    for i in range(count):
        (folder / f"{i}.png").write_bytes(picture(i))
    return folder


@pytest.mark.parametrize(("encoding", "shown"), [("latin-1", "cp1252"), ("utf-16", "utf-16"), ("utf-8-sig", "")])
def test_the_encoding_of_a_table_is_guessed_and_shown(encoding: str, shown: str, tmp_path: Path):
    folder = images(tmp_path / "images")
    text = "image,text\n" + "".join(f"{i}.png,ein schönes Bild {i}\n" for i in range(3))
    (folder / "t.csv").write_bytes(text.encode(encoding))
    found, _, form = read(folder)
    assert found == {f"{i}.png": [f"ein schönes Bild {i}"] for i in range(3)}
    assert form.settings.get("encoding", "") == shown
    with pytest.raises(ConfigError, match="encoding is 'nothing', must be one that Python knows"):
        read(folder, encoding="nothing")


def test_a_line_of_another_encoding_costs_its_text_alone(tmp_path: Path):
    folder = images(tmp_path / "images")
    lines = [b"image,text", "0.png,schön".encode(), "1.png,schön".encode("latin-1"), "2.png,grün".encode()]
    (folder / "t.csv").write_bytes(b"\n".join(lines))
    assert read(folder)[0] == {"0.png": ["schön"], "1.png": "text is not UTF-8", "2.png": ["grün"]}
    assert read(folder, encoding="latin-1")[0]["1.png"] == ["schön"]
    (folder / "t.csv").unlink()
    (folder / "t.jsonl").write_text('{"image": "0.png", "text": "cut \\ud83d"}\n')
    assert read(folder)[0] == {"0.png": ["cut \ufffd"]}


def test_images_may_lie_outside_of_the_table_s_folder(tmp_path: Path):
    folder, far = images(tmp_path / "images"), images(tmp_path / "far" / "away")
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "t.csv"
    table.write_text(f"image,text\n../images/0.png,near\n{far}/1.png,far\n/nowhere/2.png,gone\n")
    found, counts, _ = read(table)
    assert found == {str(folder / "0.png"): ["near"], str(far / "1.png"): ["far"]}
    assert counts == {"image file is missing": 1}


def test_a_table_in_a_store_names_no_images_of_this_machine(tmp_path: Path):
    far = images(tmp_path / "far")
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/t.csv", f"image,text\n{far}/1.png,far\n1.png,near\n".encode())
    memory.pipe("/tables/1.png", picture(1))
    try:
        found, counts, _ = read("memory://tables")
    finally:
        memory.rm("/tables", recursive=True)
    assert (found, counts) == ({"1.png": ["near"]}, {OUTSIDE: 1})


def test_a_changed_image_makes_the_step_run_again_and_nothing_else_does(tmp_path: Path):
    folder, far = images(tmp_path / "images"), images(tmp_path / "far")
    table = folder / "t.csv"
    table.write_text(f"image,text\n0.png,{TEXTS[0]}\n{far}/1.png,{TEXTS[1]}\n")

    def key() -> str:
        return plan("blip", str(table), "shapes", [])["ingest"][-1]

    first = key()
    (folder / "notes.txt").write_text("of no concern")
    (folder / "2.png").write_bytes(picture(7))  # which the table does not name
    assert key() == first
    (folder / "0.png").write_bytes(picture(8, (20, 20)))
    second = key()
    assert second != first
    (far / "1.png").write_bytes(picture(9, (20, 20)))
    assert key() not in (first, second)


def test_images_in_base64_are_images(tmp_path: Path):
    kinds = {kind: io.BytesIO() for kind in ("PNG", "JPEG", "WEBP", "BMP", "GIF", "TIFF")}
    for kind, file in kinds.items():
        Image.new("RGB", (16, 16), "red").save(file, kind)
    rows = [{"image": base64.b64encode(file.getvalue()).decode(), "text": kind} for kind, file in kinds.items()]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert sorted(text for texts in read(tmp_path)[0].values() for text in texts) == sorted(kinds)


def test_addresses_of_images_are_told_from_names(tmp_path: Path):
    (tmp_path / "t.csv").write_text("url,caption\nhttps://example.com/1.jpg,one\n")
    with pytest.raises(ConfigError, match="its column 'url' has web addresses, which are not fetched; download them"):
        read(tmp_path)


def test_a_folder_is_no_prefix_of_what_lies_beside_it(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    images(tmp_path / "photos2")
    with pytest.raises(ConfigError, match="nothing is there"):
        read(tmp_path / "photos")


def test_a_pattern_may_be_of_folders(tmp_path: Path):
    for name in ("part-1", "part-2", "other"):
        folder = images(tmp_path / name, 1)
        (folder / "0.txt").write_text(name)
    assert read(f"{tmp_path}/part-*")[0] == {"part-1/0.png": ["part-1"], "part-2/0.png": ["part-2"]}


def test_links_are_followed_and_those_that_lead_nowhere_are_counted(tmp_path: Path):
    folder, far = images(tmp_path / "images", 1), images(tmp_path / "far", 2)
    (folder / "0.txt").write_text(TEXTS[0])
    (far / "1.txt").write_text(TEXTS[1])
    (folder / "linked").symlink_to(far)
    (far / "back").symlink_to(folder)
    (folder / "gone.png").symlink_to(tmp_path / "nowhere.png")
    (folder / "itself.png").symlink_to("itself.png")
    found, counts, _ = read(folder)
    assert found == {"0.png": [TEXTS[0]], "linked/0.png": "", "linked/1.png": [TEXTS[1]]}
    assert counts == {"image file is missing": 2}


def test_a_table_in_a_store_is_read_in_parts(monkeypatch: pytest.MonkeyPatch):
    columns = {"image": [picture(i, (64, 64)) for i in range(200)], "text": [f"picture {i}" for i in range(200)]}
    file = io.BytesIO()
    pq.write_table(pa.table(columns), file, row_group_size=20, compression="none")
    memory = fsspec.filesystem("memory")
    memory.pipe("/tables/t.parquet", file.getvalue())
    read_bytes: list[int] = []
    real = RemoteStore.read

    def counting(store: RemoteStore, key: str, offset: int, size: int) -> bytes:
        read_bytes.append(size)
        return real(store, key, offset, size)

    monkeypatch.setattr(RemoteStore, "read", counting)
    monkeypatch.setattr(RemoteStore, "fetch", lambda *_: pytest.fail("the whole table is copied"))
    try:
        (form,) = forms_of(Files(path="memory://tables"))
        size = len(file.getvalue())
        assert sum(read_bytes) < 0.6 * size  # the columns are found by the first rows
        read_bytes.clear()
        assert sum(len(group) for group in form.groups(Counter())) == 200
        assert sum(read_bytes) < 1.6 * size
    finally:
        memory.rm("/tables", recursive=True)
