"""The data set of real pictures: gold and test tell the truth, a known share of the web does not."""

import io
import json
import stat
import tarfile
from pathlib import Path

import pytest
from tiny_models import picture
from typer import BadParameter

from benchmarks.pictures import VENDORS, main
from blip.datasets.judge import judge_names, judge_of
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.shards.manifest import Manifest
from blip.shards.reading import samples

THINGS = ("GOAT", "KITE", "FERRY", "RED HEART", "CHERRIES", "BENTO BOX")
WAVE = {
    "name": "WAVING HAND",
    "short_name": "wave",
    "image": "1f44b.png",
    "skin_variations": {"1F3FB": {"image": "1f44b-1f3fb.png"}, "1F3FB-1F3FE": {"image": "1f44b-1f3fb-1f3fe.png"}},
}
NO_NAME = {"name": None, "short_name": "up_button", "image": "up.png"}


def package(folder: Path, vendor: str, number: int) -> None:
    """Writes a package as npm does: the list of all emoji, of which a vendor may have drawn less, and its drawings."""
    things = [{"name": name, "short_name": name, "image": f"{i}.png"} for i, name in enumerate(THINGS)]
    drawn = [thing["image"] for thing in things] + ["1f44b.png", "1f44b-1f3fb.png", "1f44b-1f3fb-1f3fe.png", "up.png"]
    files = {"emoji.json": json.dumps([*things, WAVE, NO_NAME, {**NO_NAME, "image": "not-drawn.png"}]).encode()}
    files |= {f"img/{vendor}/64/{name}": picture(100 * number + i) for i, name in enumerate(drawn)}
    files |= {f"img/{vendor}/sheets/64.png": b"no drawing", f"img/{vendor}/64/no-emoji.png": b"no name"}
    folder.mkdir(exist_ok=True)
    with tarfile.open(folder / f"emoji-datasource-{vendor}-16.0.0.tgz", "w:gz") as tar:
        for name, data in files.items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def build(folder: Path, **changes) -> dict[str, Manifest]:
    vendors = {"vendors": "apple,google,facebook", "held_out": "twitter"}
    sizes = {"gold": 8, "test": 5, "wrong": 0.5, "seed": 0}
    main(out=str(folder / "pictures"), packages=str(folder / "packages"), **{**vendors, **sizes, **changes})
    return {split: Manifest.load(folder / "pictures" / f"{split}.json") for split in ("gold", "web", "test")}


@pytest.fixture
def packages(tmp_path: Path) -> Path:
    for number, vendor in enumerate(VENDORS):
        package(tmp_path / "packages", vendor, number)
    return tmp_path


def test_half_of_the_web_texts_are_another_pictures(packages: Path):
    found = build(packages)
    read = {split: list(samples(manifest)) for split, manifest in found.items()}
    assert {split: len(of_split) for split, of_split in read.items()} == {"gold": 8, "web": 22, "test": 5}
    truth = {split: [judge_names(s.meta, s.texts[0]) for s in of_split] for split, of_split in read.items()}
    assert all(truth["gold"] + truth["test"])
    assert truth["web"].count(False) == 11
    assert {s.texts[0] for s in read["web"]} <= {s.meta["names"][0] for s in read["web"]}
    vendors = {split: {s.key.partition("-")[0] for s in of_split} for split, of_split in read.items()}
    assert vendors["test"] == {"twitter"}
    assert vendors["gold"] | vendors["web"] == {"apple", "google", "facebook"}
    assert not {s.images[0] for s in read["gold"]} & {s.images[0] for s in read["web"]}


def test_a_picture_is_called_what_people_call_it(packages: Path):
    names = {s.meta["names"][0] for s in samples(build(packages, wrong=0.0, gold=1)["web"])}
    assert names >= {"red heart", "waving hand, light skin tone", "waving hand, light and medium-dark skin tone"}
    assert "up button" in names


def test_the_splits_follow_from_the_seed(packages: Path):
    digests = [{split: m.digest for split, m in build(packages, seed=seed).items()} for seed in (3, 3, 4)]
    assert digests[0] == digests[1]
    assert all(digests[0][split] != digests[2][split] for split in digests[0])


def test_ingestion_takes_the_settings_and_knows_the_truth(packages: Path):
    build(packages)
    settings = (packages / "pictures/settings.txt").read_text().replace("ingest.", "").split()
    context = RunContext(preset="shapes", overrides=tuple(settings), store=str(packages / "store"))
    ingest(context, "tars", out=packages / "data")
    web = Manifest.load(packages / "data/web.json")
    judge = judge_of(web)
    assert judge is not None
    assert [judge(s.meta, s.texts[0]) for s in samples(web)].count(True) == 11


def test_a_name_is_judged_by_its_words():
    meta = {"names": ["Red heart, large", "heart"]}
    assert [judge_names(meta, text) for text in ("red heart large", "HEART.", "red heart", "")] == [
        True,
        True,
        False,
        False,
    ]
    assert judge_names({"names": "heart"}, "heart") is None
    assert judge_names({}, "heart") is None


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"held_out": "apple"}, "would not be held out"),
        ({"vendors": "apple,acme"}, "acme"),
        ({"gold": 30}, "there are 30"),
        ({"test": 11}, "10 of twitter"),
    ],
)
def test_what_cannot_be_made_is_refused(packages: Path, changes: dict, message: str):
    with pytest.raises(BadParameter, match=message):
        build(packages, **changes)


def test_missing_packages_are_fetched_by_npm(packages: Path, monkeypatch: pytest.MonkeyPatch):
    missing = packages / "packages/emoji-datasource-twitter-16.0.0.tgz"
    elsewhere = missing.rename(packages / missing.name)
    monkeypatch.setenv("PATH", str(packages / "bin"))
    with pytest.raises(BadParameter, match="npm is not installed"):
        build(packages)
    npm = packages / "bin/npm"
    npm.parent.mkdir()
    npm.write_text('#!/bin/sh\necho "no network $3" >&2\nexit 1\n')
    npm.chmod(npm.stat().st_mode | stat.S_IXUSR)
    with pytest.raises(BadParameter, match="no network emoji-datasource-twitter"):
        build(packages)
    npm.write_text(f'#!/bin/sh\n[ "$1 $2 $3" = "pack --silent emoji-datasource-twitter" ] && /bin/cp {elsewhere} .\n')
    assert build(packages)["test"].samples == 5
