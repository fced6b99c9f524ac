"""A dry run shows on a page what would be read, left out and written, and writes nothing else."""

import io
import json
import re
import tarfile
from pathlib import Path

import pytest
from tiny_models import TEXTS, picture
from typer.testing import CliRunner

from blip.cli.program import app
from blip.config import ConfigError
from blip.runs.context import RunContext
from blip.runs.dry_run import dry_run


def photos(folder: Path, count: int) -> Path:
    folder.mkdir()
    for i in range(count):
        (folder / f"{i:02d}.png").write_bytes(picture(i, (24, 24)))
        (folder / f"{i:02d}.txt").write_text(f"{TEXTS[i % len(TEXTS)]} <{i}>")
    (folder / "broken.png").write_bytes(b"no image")
    (folder / "silent.png").write_bytes(picture(99))
    (folder / "alone.txt").write_text("no image has this name")
    return folder


def tar(path: Path, *numbers: int) -> str:
    with tarfile.open(path, "w") as file:
        for i in numbers:
            for ending, data in (("png", picture(i)), ("txt", f"a dog {i}".encode())):
                member = tarfile.TarInfo(f"{i:04d}.{ending}")
                member.size = len(data)
                file.addfile(member, io.BytesIO(data))
    return str(path)


def test_the_page_shows_samples_reasons_and_places_and_nothing_else_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    folder = photos(tmp_path / "photos", 20)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    done = CliRunner().invoke(app, ["ingest", "photos", "--dry-run", "--split", "0.75/0.25", "--json"])
    assert done.exit_code == 0, done.output
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "dry-run.html"])
    result = json.loads(done.stdout[done.stdout.index("{") :])
    assert result["images"] == 22
    assert result["splits"] == {"train": 15, "test": 5}
    assert result["left_out"] == {"image cannot be decoded": 1, "no text": 1, "no image": 1}
    page = (tmp_path / "dry-run.html").read_text()
    assert page.count("<img ") == 10
    assert all(card.count(".png") == 2 for card in page.split('<div class="card">')[1:11])  # as alt, and once below
    assert "data.form=texts" in page
    assert "images that look alike stay together" in page
    assert re.search(r"<td>1</td><td>image cannot be decoded</td><td>broken\.png</td>", page)
    assert re.search(r"<td>5</td><td>runs/store/test/test-\*\.tar</td>", page)
    assert "&lt;" in page  # texts are escaped
    assert str(folder) not in page


def test_tars_are_shown_by_split_and_where_they_lie(tmp_path: Path):
    places = {name: tar(tmp_path / f"{name}.tar", *range(4 * i, 4 * i + 4)) for i, name in enumerate(("gold", "test"))}
    web = tar(tmp_path / "web.tar", *range(40, 52))
    settings = tuple(f"data.{name}={place}" for name, place in places.items())
    result = dry_run(RunContext(overrides=settings, store=str(tmp_path / "store")), [web], tmp_path / "out")
    assert result.splits == {"gold": 4, "web": 12, "test": 4}
    page = (tmp_path / "out" / "dry-run.html").read_text()
    assert "where the tars lie" in page
    assert "web: " in page
    alone = dry_run(RunContext(store=str(tmp_path / "store")), [web], tmp_path / "out")
    assert alone.splits == {"train": 11, "test": 1}
    assert not (tmp_path / "store").exists()


def test_a_set_too_small_to_split_is_said(tmp_path: Path):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "0.png").write_bytes(picture(0))
    (tmp_path / "photos" / "0.txt").write_text("one")
    dry_run(RunContext(), [str(tmp_path / "photos")], tmp_path)
    assert "1 images cannot be split in 2" in (tmp_path / "dry-run.html").read_text()


def test_what_would_end_the_ingestion_is_said(tmp_path: Path):
    (tmp_path / "silent").mkdir()
    for i in range(3):
        (tmp_path / "silent" / f"{i}.png").write_bytes(picture(i))
    found = dry_run(RunContext(), [str(tmp_path / "silent")], tmp_path)
    assert found.splits == {"images": 0}
    assert re.search(r"3 of 3 images have no text .* set data\.text_extension", found.refused)
    assert "Ingestion would end here" in (tmp_path / "dry-run.html").read_text()
    (tmp_path / "tars").mkdir()
    tar(tmp_path / "tars" / "0.tar", *range(12))
    (tmp_path / "tars" / "1.tar").write_bytes(b"")
    found = dry_run(RunContext(), [str(tmp_path / "tars")], tmp_path)
    assert found.left_out == {"tar that cannot be read": 1}
    assert "1 of 2 tars cannot be read, more than data.lost=0 allows" in found.refused
    allowed = dry_run(RunContext(overrides=("data.lost=0.5",)), [str(tmp_path / "tars")], tmp_path)
    assert (allowed.refused, allowed.splits) == ("", {"train": 11, "test": 1})


def test_made_data_have_no_dry_run(tmp_path: Path):
    with pytest.raises(ConfigError, match="--dry-run looks at own data, but shapes is read by rules of its own"):
        dry_run(RunContext(preset="shapes"), ["shapes"], tmp_path)
