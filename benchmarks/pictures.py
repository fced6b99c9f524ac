"""Makes a data set of real pictures with human names, half of whose web texts belong to another picture.

The pictures are the emoji of four vendors, from npm's packages `emoji-datasource-*` (MIT; each vendor's own terms for
its pictures). Three vendors make gold and web, the fourth the test: a model that does well there has seen none of its
pictures. Whether a text is true is known, by the picture's own name, so that CapFilt's precision and recall are
measured. Packages that are not in the folder are fetched by `npm pack`, some 340 MB.
`python benchmarks/pictures.py --out pictures`, then
`python -m pipelines run bootstrap --set source=tars preset=small $(cat pictures/settings.txt)`.
"""

import json
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from rich.console import Console

from blip.datasets.judge import JUDGE, NAMES
from blip.shards.sample import Sample
from blip.shards.writing import write_shards

VENDORS = ("apple", "google", "facebook", "twitter")
TONES = {
    "1F3FB": "light",
    "1F3FC": "medium-light",
    "1F3FD": "medium",
    "1F3FE": "medium-dark",
    "1F3FF": "dark",
}
"""Skin tones by the code points that a variation's name ends in."""


@dataclass
class Drawing:
    """One vendor's picture of an emoji."""

    key: str
    name: str
    image: bytes


def main(
    out: str = typer.Option("pictures", help="Folder of the data set."),
    packages: str = typer.Option("pictures/packages", help="Folder of the .tgz files; fetched if missing."),
    vendors: str = typer.Option("apple,google,facebook", help="Vendors of gold and web."),
    held_out: str = typer.Option("twitter", help="Vendor of the test."),
    gold: int = typer.Option(2000, help="Gold pairs; all others are web."),
    test: int = typer.Option(700, help="Test pairs."),
    wrong: float = typer.Option(0.5, help="Share of web texts that belong to another picture."),
    seed: int = typer.Option(0, help="Of the splits and of the wrong texts."),
) -> None:
    """Writes gold, web and test as tars with a manifest each, and the settings that name them."""
    chosen = vendors.split(",")
    if unknown := {*chosen, held_out} - {*VENDORS}:
        raise typer.BadParameter(f"{', '.join(sorted(unknown))}: the vendors are {', '.join(VENDORS)}")
    if held_out in chosen:
        raise typer.BadParameter(f"--held-out {held_out}: is one of --vendors, so the test would not be held out")
    folder, fetched = Path(out), Path(packages)
    for vendor in (*chosen, held_out):
        fetch(vendor, fetched)
    trained = [drawing for vendor in chosen for drawing in drawings(fetched, vendor)]
    judged = list(drawings(fetched, held_out))
    if gold >= len(trained) or test > len(judged):
        raise typer.BadParameter(
            f"--gold {gold} --test {test}: there are {len(trained)} drawings of {vendors} and {len(judged)} of "
            f"{held_out}"
        )
    splits = split(trained, judged, gold, test, wrong, random.Random(seed))
    settings = []
    for name, samples in splits.items():
        shutil.rmtree(folder / name, ignore_errors=True)
        manifest = write_shards(samples, folder / name, name, meta={JUDGE: NAMES})
        manifest.save(folder / f"{name}.json")
        settings.append(f"ingest.data.{name}={(folder / f'{name}.json').resolve()}")
        Console().print(f"{name}: {manifest.samples:,} pairs")
    (folder / "settings.txt").write_text(" ".join(settings) + "\n", encoding="utf-8")


def fetch(vendor: str, packages: Path) -> None:
    """Fetches a vendor's package by npm, unless it is there."""
    if find_package(packages, vendor):
        return
    if not shutil.which("npm"):
        raise typer.BadParameter(f"npm is not installed; put emoji-datasource-{vendor}-*.tgz into {packages}")
    packages.mkdir(parents=True, exist_ok=True)
    Console().print(f"fetching emoji-datasource-{vendor}")
    command = ["npm", "pack", "--silent", f"emoji-datasource-{vendor}"]
    done = subprocess.run(command, cwd=packages, capture_output=True, text=True)
    if done.returncode or not find_package(packages, vendor):
        raise typer.BadParameter(f"{' '.join(command)} failed: {done.stderr.strip()[-300:]}")


def find_package(packages: Path, vendor: str) -> Path | None:
    """Returns the newest package of a vendor in a folder."""
    return max(packages.glob(f"emoji-datasource-{vendor}-*.tgz"), default=None)


def drawings(packages: Path, vendor: str) -> Iterator[Drawing]:
    """Yields a vendor's drawings with their names, in the order of the file names."""
    path = find_package(packages, vendor)
    assert path is not None
    with tarfile.open(path) as package:
        listed = package.extractfile("package/emoji.json")
        assert listed is not None
        names = names_by_file(json.load(listed))
        for member in sorted(package.getmembers(), key=lambda member: member.name):
            folder, _, file = member.name.rpartition("/")
            if folder == f"package/img/{vendor}/64" and file in names:
                found = package.extractfile(member)
                assert found is not None
                yield Drawing(f"{vendor}-{Path(file).stem}", names[file], found.read())


def names_by_file(emoji: Sequence[dict[str, Any]]) -> dict[str, str]:
    """Returns each picture's name by its file, such as `woman running facing right, medium skin tone`."""
    names = {}
    for entry in emoji:
        name = (entry["name"] or entry["short_name"]).replace("_", " ").lower()
        names[entry["image"]] = name
        for tones, variation in entry.get("skin_variations", {}).items():
            skin = " and ".join(TONES[tone] for tone in tones.split("-"))
            names[variation["image"]] = f"{name}, {skin} skin tone"
    return names


def split(
    trained: Sequence[Drawing], judged: Sequence[Drawing], gold: int, test: int, wrong: float, draws: random.Random
) -> dict[str, list[Sample]]:
    """Returns the samples of gold, web and test; a share `wrong` of web texts are names of other web pictures."""
    order = draws.sample(trained, len(trained))
    web = order[gold:]
    texts = [drawing.name for drawing in web]
    mixed = draws.sample(range(len(web)), round(wrong * len(web)))
    for place in mixed:
        while texts[place] == web[place].name:
            texts[place] = draws.choice(web).name
    return {
        "gold": [sample(drawing, drawing.name) for drawing in order[:gold]],
        "web": [sample(drawing, text) for drawing, text in zip(web, texts, strict=True)],
        "test": [sample(drawing, drawing.name) for drawing in draws.sample(judged, test)],
    }


def sample(drawing: Drawing, text: str) -> Sample:
    return Sample(drawing.key, [drawing.image], [text], {"names": [drawing.name]})


if __name__ == "__main__":
    typer.run(main)
