"""Packages of pictures become folders that ingestion reads; real ones are read where they are there."""

import io
import json
import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from test_pictures import package
from tiny_models import picture
from typer import BadParameter

from benchmarks.folders import DEBIAN, main
from blip.runs.context import RunContext
from blip.runs.dry_run import dry_run

ROOT = Path(__file__).parents[2]
PACKAGES = Path(os.environ.get("BLIP_PICTURES") or ROOT / "pictures" / "packages")
needs_dpkg = pytest.mark.skipif(not shutil.which("dpkg-deb"), reason="dpkg-deb, which unpacks Debian's, is not here")
FROG = "A frog.\nde.utf8=Ein Frosch.\npt_BR.utf8=Um sapo.\nen_GB.utf8=A frog.\nnl.utf8=\n"


def titled(number: int, title: str) -> bytes:
    """Returns a PNG with transparency and a title, as Inkscape writes one."""
    info, file = PngInfo(), io.BytesIO()
    info.add_text("Title", title)
    with Image.open(io.BytesIO(picture(number, (40, 60)))) as image:
        image.convert("LA").save(file, "PNG", pnginfo=info)
    return file.getvalue()


def debian(folder: Path, source: str, files: dict[str, bytes], links: dict[str, str] | None = None) -> None:
    """Writes a package of Debian by its own tool."""
    name, tree = DEBIAN[source], folder / f"{source}-tree"
    for path, content in files.items():
        (tree / path).parent.mkdir(parents=True, exist_ok=True)
        (tree / path).write_bytes(content)
    for path, target in (links or {}).items():
        (tree / path).symlink_to(target)
    (tree / "DEBIAN").mkdir()
    (tree / "DEBIAN/control").write_text(
        f"Package: {name}\nVersion: 1\nArchitecture: all\nMaintainer: a <a@b>\nDescription: a\n"
    )
    (folder / "packages").mkdir(exist_ok=True)
    target = folder / "packages" / f"{name}_1_all.deb"
    subprocess.run(["dpkg-deb", "--build", "-Znone", str(tree), str(target)], check=True, capture_output=True)


def made(folder: Path, source: str, language: str = "en", out: str = "out") -> dict[str, list[str]]:
    main(source, str(folder / out), str(folder / "packages"), language)
    rows = [json.loads(line) for line in (folder / out / "captions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert all((folder / out / row["file_name"]).is_file() for row in rows)
    return {row["file_name"]: row["text"] for row in rows}


@needs_dpkg
def test_stamps_have_their_sentence_in_one_language_or_in_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = "usr/share/tuxpaint/stamps"
    files = {
        f"{home}/animals/frog.png": picture(0),
        f"{home}/animals/frog.txt": FROG.encode(),
        f"{home}/animals/frog_desc_de.ogg": b"spoken",
        f"{home}/car.svg": b"<svg/>",
        f"{home}/car.txt": b"A car.",
        f"{home}/none.png": picture(1),
        "usr/share/doc/tux.png": picture(2),
    }
    debian(tmp_path, "tuxpaint", files)
    assert made(tmp_path, "tuxpaint") == {"animals/frog.png": ["A frog."]}
    assert "1 pictures; left out: 1 vector drawings; left out: 1 without a text in 'en'" in capsys.readouterr().out
    assert made(tmp_path, "tuxpaint", "de", "de") == {"animals/frog.png": ["Ein Frosch."]}
    assert made(tmp_path, "tuxpaint", "all", "all") == {"animals/frog.png": ["A frog.", "Ein Frosch.", "Um sapo."]}
    with pytest.raises(BadParameter, match="no picture has a text in 'nl'"):
        made(tmp_path, "tuxpaint", "nl", "nl")


@needs_dpkg
def test_clip_art_has_its_title_once_and_is_read_as_own_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    home = "usr/share/openclipart/png"
    files = {f"{home}/food/{i}.png": titled(i, f" salad  {i} ") for i in range(4)}
    files |= {f"{home}/bad.png": b"no picture", f"{home}/nameless.png": titled(9, "")}
    files[f"{home}/broken.png"] = titled(8, "broken")[:900]
    debian(tmp_path, "openclipart", files, {f"{home}/same.png": "food/0.png"})
    found = made(tmp_path, "openclipart")
    assert found == {"broken.png": ["broken"], **{f"food/{i}.png": [f"salad {i}"] for i in range(4)}}
    assert "left out: 2 without a title" in capsys.readouterr().out
    looked = dry_run(RunContext(store=str(tmp_path / "store")), [str(tmp_path / "out")], tmp_path)
    assert sum(looked.splits.values()) == 4
    assert sum(looked.left_out.values()) == 1


def test_emoji_have_their_names(tmp_path: Path):
    package(tmp_path / "packages", "apple", 0)
    found = made(tmp_path, "emoji-apple")
    assert found["apple-0.png"] == ["goat"]
    assert len(found) == 10


def test_a_package_that_is_missing_is_fetched(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    tools = tmp_path / "bin"
    tools.mkdir()
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(BadParameter, match=r"apt-get is not installed; put tuxpaint-stamps-default_\*\.deb into"):
        made(tmp_path, "tuxpaint")
    apt = tools / "apt-get"
    apt.write_text('#!/bin/sh\necho "no network for $2" >&2\nexit 1\n')
    apt.chmod(apt.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(BadParameter, match="apt-get download tuxpaint-stamps-default failed: no network for tux"):
        made(tmp_path, "tuxpaint")
    apt.write_text('#!/bin/sh\necho "" > "$2_1_all.deb"\n')
    with pytest.raises(BadParameter, match=r"dpkg-deb, which unpacks tuxpaint-stamps-default_1_all\.deb"):
        made(tmp_path, "tuxpaint")


@needs_dpkg
def test_what_is_no_package_of_debian_is_refused(tmp_path: Path):
    (tmp_path / "packages").mkdir()
    (tmp_path / "packages" / f"{DEBIAN['openclipart']}_1_all.deb").write_bytes(b"half of a package")
    with pytest.raises(BadParameter, match="dpkg-deb cannot read it; remove it"):
        made(tmp_path, "openclipart")


@pytest.mark.parametrize(
    ("source", "language", "message"),
    [("clips", "en", "the sources are openclipart"), ("emoji-apple", "de", "has English texts alone")],
)
def test_what_cannot_be_made_is_refused(tmp_path: Path, source: str, language: str, message: str):
    with pytest.raises(BadParameter, match=message):
        made(tmp_path, source, language)
    (tmp_path / "out").mkdir()
    (tmp_path / "out/mine.txt").write_text("mine")
    with pytest.raises(BadParameter, match="is not empty"):
        made(tmp_path, "emoji-apple")


@needs_dpkg
@pytest.mark.slow
@pytest.mark.parametrize(("source", "fewest"), [("openclipart", 6500), ("tuxpaint", 700)])
def test_real_packages_are_read(tmp_path: Path, source: str, fewest: int):
    packages = [*PACKAGES.glob(f"{DEBIAN[source]}_*.deb")]
    if not packages:
        pytest.skip(
            f"no {DEBIAN[source]}: run `python -m benchmarks.folders`, or name the folder of packages in BLIP_PICTURES"
        )
    main(source, str(tmp_path / "out"), str(PACKAGES), "en")
    looked = dry_run(RunContext(store=str(tmp_path / "store")), [str(tmp_path / "out")], tmp_path)
    assert len((tmp_path / "out/captions.jsonl").read_text(encoding="utf-8").splitlines()) >= fewest
    assert sum(looked.splits.values()) >= 0.8 * min(looked.images, fewest)
