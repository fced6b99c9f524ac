import json
import logging
import subprocess
import sys
import time
from io import StringIO

import pytest
from rich.console import Console

from blip import progress


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    """Runs a process that writes a log with a line for every record."""
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", Console(file=StringIO()))
    monkeypatch.delenv("BLIP_PROGRESS", raising=False)
    monkeypatch.setenv("BLIP_PROGRESS_SECONDS", "0")
    monkeypatch.setattr(progress.log, "propagate", True)
    caplog.set_level(logging.INFO, "blip")
    return caplog


def test_a_log_gets_lines_with_what_is_done_and_its_losses(plain):
    with progress.progress(200, "pretrain") as bar:
        bar.advance(50, {"itc": 3.0, "lm": 4.5})
        bar.advance(50)
    lines = [line.split() for line in plain.messages]
    assert [line[:4] for line in lines] == [["pretrain", f"{n}/200", "images", f"{n // 2}%"] for n in (50, 100, 100)]
    assert all(line[-2:] == ["itc=3", "lm=4.5"] for line in lines)
    assert [line[5] for line in lines] == ["ETA", "ETA", "in"]


def test_lines_of_a_log_are_rare(plain, monkeypatch):
    monkeypatch.setenv("BLIP_PROGRESS_SECONDS", "3600")
    with progress.progress(200, "pretrain") as bar:
        for _ in range(200):
            bar.advance()
    assert len(plain.messages) == 1


def test_losses_are_read_only_when_shown(plain, monkeypatch):
    class Loss:
        reads = 0

        def __float__(self) -> float:
            Loss.reads += 1
            return 1.0

    monkeypatch.setattr(progress, "LIVE_SECONDS", 3600.0)
    with progress.progress(200, "pretrain") as bar:
        for _ in range(200):
            bar.advance(1, {"itc": Loss()})
    assert Loss.reads == 1
    assert len(plain.messages) == 1


def test_a_resumed_step_counts_from_where_it_was_and_rates_only_what_it_did(plain):
    with progress.progress(100, "pretrain", done=90) as bar:
        time.sleep(0.1)
        bar.advance(10)
    last = plain.messages[-1].split()
    assert last[1] == "100/100"
    assert float(last[4].removesuffix("/s")) < 101


@pytest.mark.usefixtures("plain")
def test_steps_longer_than_the_window_have_a_rate_and_a_time_of_arrival(monkeypatch):
    monkeypatch.setattr(progress, "WINDOW_SECONDS", 0.05)
    with progress.progress(100, "pretrain") as bar:
        for _ in range(3):
            time.sleep(0.1)
            bar.advance(1)
        record = bar.record(time.monotonic())
    assert record.rate > 0
    assert record.eta == pytest.approx(97 / record.rate)


def test_slow_work_is_told_from_none():
    record = progress.ProgressRecord("caption", "images", 1, 9, rate=0.043, eta=186.0, seconds=23.0)
    assert "0.043/s" in record.line()
    assert "0.043/s" in record.figures()


def test_a_failed_step_has_no_last_line(plain):
    with pytest.raises(RuntimeError), progress.progress(10, "pretrain"):
        raise RuntimeError
    assert plain.messages == []


def test_other_ranks_are_silent(plain, monkeypatch):
    monkeypatch.setenv("RANK", "1")
    with progress.progress(10, "pretrain") as bar:
        bar.advance(10)
    assert plain.messages == []


def test_a_terminal_gets_a_moving_bar_and_keeps_a_line(monkeypatch, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.INFO, "blip")
    screen = Console(file=StringIO(), force_terminal=True, width=120, _environ={})
    monkeypatch.setattr(progress, "LIVE_SECONDS", 0.0)
    monkeypatch.setattr(progress, "console", screen)
    monkeypatch.delenv("BLIP_PROGRESS", raising=False)
    with progress.progress(1200, "pretrain") as bar:
        bar.advance(600, {"itc": 3.0})
        time.sleep(0.2)
    assert isinstance(screen.file, StringIO)
    moving, kept = screen.file.getvalue().rsplit("  pretrain", 1)
    assert "600/1,200 images" in moving
    assert "itc=3" in moving
    assert "600/1200" in kept


@pytest.mark.parametrize("terminal", [False, True])
def test_another_process_follows_and_what_it_says_keeps_its_place(tmp_path, monkeypatch, terminal):
    monkeypatch.setenv("BLIP_PROGRESS_SECONDS", "0")
    monkeypatch.setenv("BLIP_PROGRESS", str(tmp_path / "progress"))
    screen = Console(file=StringIO(), force_terminal=terminal, width=120, _environ={})
    step = "from blip.progress import progress\nwith progress(10, 'caption') as bar: bar.advance(10, {'lm': 2.0})"
    with progress.follow_progress(tmp_path / "progress", screen) as print_line:
        print_line("first")
        subprocess.run([sys.executable, "-c", step], check=True)
        print_line("then")
    assert isinstance(screen.file, StringIO)
    shown = screen.file.getvalue()
    assert shown.index("first") < shown.index("caption 10/10 images 100%") < shown.index("then")
    record = json.loads((tmp_path / "progress").read_text(encoding="utf-8").splitlines()[-1])
    assert record.items() >= {"what": "caption", "done": 10, "total": 10, "losses": {"lm": 2.0}, "last": True}.items()


def test_an_alarm_reaches_the_log_and_the_screen_of_who_follows(plain, tmp_path, monkeypatch):
    path, screen = tmp_path / "progress.jsonl", Console(file=StringIO(), width=200)
    with progress.follow_progress(path, screen):
        monkeypatch.setenv("BLIP_PROGRESS", str(path))
        with progress.progress(10, "pretrain") as bar:
            bar.advance(5)
            progress.alarm("step 5: alarm: captions [all] alike")
    assert "step 5: alarm: captions [all] alike" in plain.messages
    shown = screen.file.getvalue()
    assert shown.count("! step 5: alarm: captions [all] alike") == 1
    assert "pretrain 5/10" in shown


def test_what_ends_at_once_is_worth_no_line(plain):
    with progress.progress(2, "reading tars", "tars", patience=60.0) as bar:
        bar.advance(2)
    with progress.progress(2, "pretrain", done=2):
        pass
    (line,) = plain.messages
    assert line.startswith("pretrain 2/2")
