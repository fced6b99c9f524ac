import os
import subprocess
import sys
from pathlib import Path

import pytest

from components import revision as source


def asked() -> str:
    """Returns the revision in a new process."""
    source.of_checkout.cache_clear()
    return source.revision()


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository with one commit, as a function that runs git in it."""

    def git(*arguments: str) -> None:
        subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments],
            cwd=tmp_path,
            check=True,
            capture_output=True,
        )

    monkeypatch.setattr(source, "ROOT", tmp_path)
    monkeypatch.delenv("BLIP_REVISION", raising=False)
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "code.py").write_text("1", encoding="utf-8")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "code")
    return git


def test_a_clean_tree_is_its_last_commit_that_touched_the_sources(checkout, tmp_path):
    first = asked()
    assert first == source.git("rev-parse", "--short", "HEAD")
    (tmp_path / "README.md").write_text("words", encoding="utf-8")
    checkout("add", ".")
    checkout("commit", "-qm", "words")
    assert asked() == first


@pytest.mark.usefixtures("checkout")
def test_a_changed_tree_is_marked_by_what_it_holds(tmp_path):
    clean = asked()
    (tmp_path / "blip" / "code.py").write_text("2", encoding="utf-8")
    two = asked()
    (tmp_path / "blip" / "new.py").write_text("3", encoding="utf-8")
    three = asked()
    assert two.startswith(f"{clean}-dirty.")
    assert len({clean, two, three}) == 3
    (tmp_path / "blip" / "new.py").unlink()
    assert asked() == two
    (tmp_path / "blip" / "code.py").write_text("1", encoding="utf-8")
    assert asked() == clean


@pytest.mark.usefixtures("checkout")
def test_without_history_the_contents_count(tmp_path, monkeypatch):
    (tmp_path / ".git").rename(tmp_path / "gone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    one = asked()
    assert one.startswith("source.")
    (tmp_path / "blip" / "__pycache__").mkdir()
    (tmp_path / "blip" / "__pycache__" / "code.pyc").write_text("compiled", encoding="utf-8")
    assert asked() == one
    (tmp_path / "blip" / "code.py").write_text("2", encoding="utf-8")
    assert asked() != one


@pytest.mark.usefixtures("checkout")
def test_the_environment_goes_before(monkeypatch):
    monkeypatch.setenv("BLIP_REVISION", "v1")
    assert asked() == "v1"


@pytest.mark.usefixtures("checkout")
def test_git_is_asked_once_and_only_when_somebody_wants_to_know(monkeypatch):
    questions = []
    monkeypatch.setattr(source, "git", lambda *words: questions.append(words) or "abc")
    source.of_checkout.cache_clear()
    for _ in range(3):
        source.revision()
    assert [words[0] for words in questions] == ["log", "status"]
    source.of_checkout.cache_clear()


def test_help_asks_nobody(tmp_path):
    (tmp_path / "git").write_text(f"#!/bin/sh\necho asked >> {tmp_path}/asked\n", encoding="utf-8")
    (tmp_path / "git").chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}", "GIT_PYTHON_REFRESH": "quiet"}
    environment.pop("BLIP_REVISION", None)
    subprocess.run([sys.executable, "-m", "pipelines", "--help"], env=environment, check=True, capture_output=True)
    assert not (tmp_path / "asked").exists()
