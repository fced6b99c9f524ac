"""Makes folders of real pictures, with a table of their texts, that `blip ingest` reads as anyone's own data.

`openclipart` are 6,900 public-domain drawings with a title each, Debian's package `openclipart-png` (131 MB);
`tuxpaint` 800 photographs and drawings with a sentence in up to 90 languages, `tuxpaint-stamps-default` (161 MB);
`emoji-apple`, `-google`, `-facebook` and `-twitter` the drawings of `benchmarks/pictures.py`, without noise. What is
not in the folder of packages is fetched by `apt-get download` or `npm pack`; nothing is installed. For example:

    python -m benchmarks.folders tuxpaint --language de --out stamps
    blip ingest stamps --dry-run
"""

import io
import json
import shutil
import subprocess
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import typer
from PIL.PngImagePlugin import PngImageFile
from rich.console import Console

from benchmarks.pictures import VENDORS, drawings, fetch

DEBIAN = {"openclipart": "openclipart-png", "tuxpaint": "tuxpaint-stamps-default"}
SOURCES = (*DEBIAN, *(f"emoji-{vendor}" for vendor in VENDORS))
ENGLISH = "en"


class Picture(NamedTuple):
    path: str
    """In the folder."""
    image: bytes
    texts: list[str]


def main(
    source: str = typer.Argument(help=f"One of {', '.join(SOURCES)}."),
    out: str = typer.Option(..., help="The folder to write."),
    packages: str = typer.Option("pictures/packages", help="Folder of the packages; fetched if missing."),
    language: str = typer.Option(ENGLISH, help="Of tuxpaint's sentences, such as de or pt_BR; all for all of them."),
) -> None:
    """Writes the pictures of a package and a table of their texts, captions.jsonl."""
    if source not in SOURCES:
        raise typer.BadParameter(f"{source}: the sources are {', '.join(SOURCES)}")
    if language != ENGLISH and source != "tuxpaint":
        raise typer.BadParameter(f"--language {language}: {source} has English texts alone")
    folder, counts = Path(out), Counter[str]()
    if folder.exists() and any(folder.iterdir()):
        raise typer.BadParameter(f"--out {out}: is not empty; name another folder, or remove it")
    rows = []
    for picture in pictures(source, Path(packages), language, counts):
        path = folder / picture.path
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(picture.image)
        rows.append(json.dumps({"file_name": picture.path, "text": picture.texts}, ensure_ascii=False) + "\n")
    if not rows:
        raise typer.BadParameter(f"{source}: no picture has a text in {language!r}")
    (folder / "captions.jsonl").write_text("".join(sorted(rows)), encoding="utf-8")
    left_out = "".join(f"; left out: {count:,} {what}" for what, count in counts.items())
    Console().print(f"{out}: {len(rows):,} pictures{left_out}", soft_wrap=True)


def pictures(source: str, packages: Path, language: str, counts: Counter[str]) -> Iterator[Picture]:
    """Yields the pictures of a source with their texts; counts what is left out."""
    if source in DEBIAN:
        files = unpack(fetch_debian(DEBIAN[source], packages))
        yield from stamps(files, language, counts) if source == "tuxpaint" else clip_art(files, counts)
        return
    vendor = source.removeprefix("emoji-")
    fetch(vendor, packages)
    for drawing in drawings(packages, vendor):
        yield Picture(f"{drawing.key}.png", drawing.image, [drawing.name])


def fetch_debian(package: str, packages: Path) -> Path:
    """Returns a package of Debian; fetches it unless it is there."""
    pattern = f"{package}_*.deb"
    if not any(packages.glob(pattern)):
        if not shutil.which("apt-get"):
            raise typer.BadParameter(f"apt-get is not installed; put {pattern} into {packages}")
        packages.mkdir(parents=True, exist_ok=True)
        Console().print(f"fetching {package}")
        command = ["apt-get", "download", package]
        done = subprocess.run(command, cwd=packages, capture_output=True, text=True)
        if done.returncode or not any(packages.glob(pattern)):
            raise typer.BadParameter(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")
    return max(packages.glob(pattern))


def unpack(package: Path) -> Iterator[tuple[str, bytes]]:
    """Yields path and content of a package's files, in the order of the package."""
    if not shutil.which("dpkg-deb"):
        raise typer.BadParameter(f"dpkg-deb, which unpacks {package.name}, is not installed")
    with subprocess.Popen(["dpkg-deb", "--fsys-tarfile", str(package)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            with tarfile.open(fileobj=process.stdout, mode="r|") as tar:
                for member in filter(tarfile.TarInfo.isfile, tar):  # links name drawings that come anyway
                    file = tar.extractfile(member)
                    assert file is not None
                    yield member.name.removeprefix("./"), file.read()
        except tarfile.ReadError:
            raise typer.BadParameter(
                f"{package}: dpkg-deb cannot read it; remove it, and it is fetched again"
            ) from None


def clip_art(files: Iterator[tuple[str, bytes]], counts: Counter[str]) -> Iterator[Picture]:
    """Yields Open Clip Art's drawings with the title that their author wrote into the file."""
    for path, content in files:
        _, _, name = path.partition("usr/share/openclipart/png/")
        if not name.endswith(".png"):
            continue
        title = title_of(content)
        if title:
            yield Picture(name, content, [title])
        else:
            counts["without a title"] += 1


def title_of(content: bytes) -> str:
    """Returns the title in a PNG's text, empty if there is none; the pixels are not decoded."""
    try:
        with PngImageFile(io.BytesIO(content)) as image:
            return " ".join(str(image.info.get("Title", "")).split())
    except (SyntaxError, OSError):  # as Pillow's readers say that a file is no PNG, or ends too early
        return ""


def stamps(files: Iterator[tuple[str, bytes]], language: str, counts: Counter[str]) -> Iterator[Picture]:
    """Yields Tux Paint's stamps with their sentences in a language; vector drawings have no pixels and are left out."""
    folder = "usr/share/tuxpaint/stamps/"
    found: dict[str, dict[str, bytes]] = {}
    for path, content in files:
        stem, _, ending = path.removeprefix(folder).rpartition(".")
        if path.startswith(folder) and ending in ("png", "txt", "svg"):
            found.setdefault(stem, {})[ending] = content
    for stem, parts in sorted(found.items()):
        texts = sentences(parts.get("txt", b""), language)
        if "png" not in parts:
            counts["vector drawings"] += 1
        elif not texts:
            counts[f"without a text in {language!r}"] += 1
        else:
            yield Picture(f"{stem}.png", parts["png"], texts)


def sentences(content: bytes, language: str) -> list[str]:
    """Returns the sentences of a stamp: English stands first, others after their language, such as `de.utf8=`."""
    english, *others = content.decode("utf-8", "replace").splitlines() or [""]
    translated: dict[str, str] = {ENGLISH: english}
    for line in others:
        name, found, text = line.partition(".utf8=")
        if found:
            translated[name] = text
    chosen: Sequence[Any] = list(translated.values()) if language == "all" else [translated.get(language, "")]
    return list(dict.fromkeys(text.strip() for text in chosen if text.strip()))


if __name__ == "__main__":
    typer.run(main)
