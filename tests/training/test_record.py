"""A resumed run reads the record of its earlier attempts."""

from pathlib import Path

import pytest

from blip.storage import open_store
from blip.tracking import Run
from blip.training.record import RunRecord


def kept(folder: Path) -> RunRecord:
    record = RunRecord(Run(), open_store(folder), 0)
    for step in (10, 20, 30):
        record(step, {"train/lm": step / 10})
    record.reject({(0, 3): "truncated image", (0, 4): "empty text"})
    record.save()
    return record


def test_curves_and_rejected_samples_go_on_from_the_checkpoint(tmp_path: Path):
    kept(tmp_path)
    record = RunRecord(Run(), open_store(tmp_path), 20)
    record(25, {"train/lm": 2.5})
    record.reject({(0, 3): "truncated image", (1, 0): "empty text"})  # the first is met again
    assert record.curves() == {"lm": [(10, 1.0), (20, 2.0), (25, 2.5)]}
    assert record.rejected == {"truncated image": 1, "empty text": 2}


def test_a_run_that_begins_knows_nothing_of_another(tmp_path: Path):
    kept(tmp_path)
    record = RunRecord(Run(), open_store(tmp_path), 0)
    assert record.curves() == record.rejected == {}


@pytest.mark.parametrize("name", ["curves.json", "rejected.json"])
@pytest.mark.parametrize(
    "content", [b"", b'[[10, {"train/lm"', b"{}", b"[1]", b"null", b"[[10, 5]]", b"\xff", b"[" * 100_000]
)
def test_a_record_that_is_cut_costs_curve_points_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, name: str, content: bytes
):
    kept(tmp_path)
    (tmp_path / name).write_bytes(content)
    record = RunRecord(Run(), open_store(tmp_path), 30)
    record(40, {"train/lm": 4.0})
    assert record.losses() == {"lm": 4.0}
    assert len([r for r in caplog.records if "skipped" in r.getMessage()]) == (content != b"{}")


def test_a_record_that_is_gone_costs_nothing(tmp_path: Path):
    assert RunRecord(Run(), open_store(tmp_path), 30).points == []
