"""What a step writes on this machine appears whole or not at all, and errors name the place in one line."""

import os
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch
from small_disk import small_disk

from blip.capfilt.groups import BATCH, Groups
from blip.data.tokenizer import Tokenizer
from blip.models.weights.files import write_tensors
from blip.storage import StoreError, output_folder, scratch, write_file
from blip.tracking import TrackingError, unsent

LIMIT = 4096
TENSORS = {"a": torch.arange(10_000.0)}
WORDS = [f"word{i}" for i in range(1000)]


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_file_that_does_not_fit_leaves_the_former_one(tmp_path: Path):
    path = tmp_path / "new folder" / "metrics.json"
    write_file(path, "before")
    with small_disk(LIMIT), pytest.raises(StoreError) as full:
        write_file(path, "x" * (LIMIT + 1))
    assert re.fullmatch(
        rf"{path} cannot be written to \([\d,]+ MB are free there\): .*; free some space.*", str(full.value)
    )
    assert files(tmp_path) == {"new folder/metrics.json": b"before"}
    write_file(path, "x" * (LIMIT + 1))
    assert files(tmp_path) == {"new folder/metrics.json": b"x" * (LIMIT + 1)}


def test_a_place_that_takes_no_file_is_named():
    with pytest.raises(StoreError, match=r"^/proc/none/metrics\.json cannot be written to .*: .*No such file"):
        write_file("/proc/none/metrics.json", "a")


def test_a_link_and_a_device_stay_what_they_are(tmp_path: Path):
    (tmp_path / "link").symlink_to(tmp_path / "file")
    write_file(tmp_path / "link", "a")
    assert (tmp_path / "link").is_symlink()
    assert (tmp_path / "file").read_text(encoding="utf-8") == "a"
    reader, writer = os.pipe()
    write_file(f"/dev/fd/{writer}", "b")
    assert os.read(reader, 1) == b"b"


WRITERS: dict[str, Callable[[Path], object]] = {
    "text": lambda folder: write_file(folder / "late", "x" * 2 * LIMIT),
    "safetensors": lambda folder: write_tensors(TENSORS, folder / "late.safetensors"),
    "torch": lambda folder: write_tensors(TENSORS, folder / "late.pth"),
    "tokenizer": lambda folder: Tokenizer.train(WORDS, 2000).save(folder / "late"),
}


@pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS.keys())
def test_a_folder_that_does_not_fit_changes_in_nothing(tmp_path: Path, write: Callable[[Path], object]):
    write_file(tmp_path / "early", "before")

    def publish() -> None:
        with output_folder(tmp_path) as folder:
            write_file(folder / "early", "after")
            write(folder)

    with small_disk(LIMIT), pytest.raises(StoreError) as full:
        publish()
    assert str(full.value).startswith(f"{tmp_path}")
    assert "\n" not in str(full.value)
    assert list(tmp_path.rglob("*")) == [tmp_path / "early"]
    assert files(tmp_path) == {"early": b"before"}
    publish()
    assert files(tmp_path)["early"] == b"after"
    assert len(files(tmp_path)) > 1


def test_what_a_killed_process_left_of_a_folder_is_not_published(tmp_path: Path):
    (tmp_path / ".incomplete").mkdir()
    (tmp_path / ".incomplete" / "stale").write_text("a", encoding="utf-8")
    with output_folder(tmp_path) as folder:
        write_file(folder / "below" / "new", "b")
    assert files(tmp_path) == {"below/new": b"b"}
    assert not (tmp_path / ".incomplete").exists()


def test_an_error_of_the_work_stays_what_it_is(tmp_path: Path):
    def publish() -> None:
        with output_folder(tmp_path) as folder:
            write_file(folder / "a", "a")
            raise ValueError("mine")

    with pytest.raises(ValueError, match="mine"):
        publish()
    assert list(tmp_path.iterdir()) == []


def test_a_scratch_folder_without_room_is_named():
    with (
        small_disk(LIMIT),
        pytest.raises(StoreError, match=r"blip-scratch-tars-\w+ cannot .* TMPDIR"),
        scratch("tars") as folder,
    ):
        (folder / "tar").write_bytes(bytes(LIMIT + 1))
    with pytest.raises(TrackingError, match=r"^MLflow"), scratch("tars"):
        raise TrackingError("MLflow's file a: No space left on device")
    with pytest.raises(FileNotFoundError, match="none"), scratch("tars") as folder:
        (folder / "none").read_bytes()


def test_a_database_without_room_is_one_line():
    rows = np.arange(BATCH)

    def group() -> None:
        with Groups() as groups:
            groups.add_texts(rows, pa.array([f"text {i}" for i in rows]))

    with small_disk(1 << 20), pytest.raises(StoreError, match="TMPDIR") as full:
        group()
    assert "\n" not in str(full.value)


def test_unsent_records_go_where_there_is_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    (tmp_path / "runs").write_text("a file, so that no folder can be made in it", encoding="utf-8")
    assert unsent.save_records({"a": 1}).is_relative_to(tmp_path / "tmp")
    with small_disk(LIMIT), pytest.raises(OSError, match="large"):
        unsent.save_records({"a": "x" * (LIMIT + 1)})
    assert len(list((tmp_path / "tmp").rglob("*.json"))) == 1
