import subprocess
from pathlib import Path

import pytest

from components import image


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """A repository with one commit; calling it runs git there."""

    def git(*arguments: str) -> None:
        subprocess.run(["git", "-c", "user.name=a", "-c", "user.email=a@b", *arguments], cwd=tmp_path, check=True, capture_output=True)

    monkeypatch.setattr(image, "ROOT", tmp_path)
    monkeypatch.delenv("BLIP_REVISION", raising=False)
    (tmp_path / "blip").mkdir()
    (tmp_path / "blip" / "code.py").write_text("1")
    git("init", "-q")
    git("add", ".")
    git("commit", "-qm", "code")
    return git


def test_a_clean_tree_is_its_last_commit_that_touched_the_sources(checkout, tmp_path):
    first = image.revision()
    assert first == image.git("rev-parse", "--short", "HEAD")
    (tmp_path / "README.md").write_text("words")
    checkout("add", ".")
    checkout("commit", "-qm", "words")
    assert image.revision() == first


@pytest.mark.usefixtures("checkout")
def test_a_changed_tree_is_marked_by_what_it_holds(tmp_path):
    clean = image.revision()
    (tmp_path / "blip" / "code.py").write_text("2")
    two = image.revision()
    (tmp_path / "blip" / "new.py").write_text("3")
    three = image.revision()
    assert two.startswith(f"{clean}-dirty.")
    assert len({clean, two, three}) == 3
    (tmp_path / "blip" / "new.py").unlink()
    assert image.revision() == two
    (tmp_path / "blip" / "code.py").write_text("1")
    assert image.revision() == clean


@pytest.mark.usefixtures("checkout")
def test_without_history_the_contents_count(tmp_path, monkeypatch):
    (tmp_path / ".git").rename(tmp_path / "gone")
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    one = image.revision()
    assert one.startswith("source.")
    (tmp_path / "blip" / "__pycache__").mkdir()
    (tmp_path / "blip" / "__pycache__" / "code.pyc").write_text("compiled")
    assert image.revision() == one
    (tmp_path / "blip" / "code.py").write_text("2")
    assert image.revision() != one


@pytest.mark.usefixtures("checkout")
def test_the_environment_goes_before(monkeypatch):
    monkeypatch.setenv("BLIP_REVISION", "v1")
    assert image.revision() == "v1"
