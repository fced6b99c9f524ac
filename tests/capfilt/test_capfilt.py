"""CapFilt and its selection, from a data folder to the one that training reads next."""

import json
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_models import both, captioner, model_folder, samples, text_filter
from tiny_others import clip, git, llava, siglip

from blip.capfilt.cutoffs import count_precise
from blip.capfilt.job import CapFiltConfig, CapFiltJob
from blip.config import ConfigError, load_config, presets
from blip.data.loader import Loader, LoaderConfig
from blip.datasets.judge import JUDGE, SHAPES
from blip.datasets.shapes import ShapesConfig, is_true, web_samples
from blip.report.capfilt_figures import load_pictures
from blip.results import CapFiltResult, Change, Kept, SelectResult
from blip.runs.capfilt import capfilt
from blip.runs.context import RunContext
from blip.runs.select import select
from blip.runs.worker import work
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.shards.sample import Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import StoreError, open_store
from blip.tracking import Run
from blip.workers.local_pool import WorkerError, on_this_machine

DECODING = {"type": "nucleus", "min_length": 4, "max_length": 10}
CONFIG = {
    "stream": {"batch": 4, "decoding": DECODING},
    "quality": {"min_side": 16},
    "lease": {"seconds": 2},
    "report": 0.2,
}


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder, two model folders and a preset."""
    data = tmp_path / "data"
    (data / "tokenizer").mkdir(parents=True)
    (data / "tokenizer" / "vocab.txt").write_text("[PAD]")
    write_shards(samples(24), tmp_path / "shards", "web", 6).save(data / "web.json")
    write_shards(samples(3), tmp_path / "shards", "gold", 3).save(data / "gold.json")
    model_folder(captioner(), tmp_path / "captioner")
    model_folder(text_filter(), tmp_path / "filter")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump({"extends": "shapes", "capfilt": CONFIG}))
    return tmp_path


@contextmanager
def here(uri: str) -> Iterator[Callable[[], bool]]:
    """Runs a worker in this process."""
    work(uri, "here")
    yield lambda: False


@contextmanager
def nowhere(uri: str) -> Iterator[Callable[[], bool]]:
    raise AssertionError(f"nothing is left to do in {uri}")
    yield lambda: False


def score(
    folder: Path, *overrides: str, out: str = "scored", workers=here, revision: str = "r", **given
) -> CapFiltResult:
    given = {
        "data": folder / "data",
        "captioner": folder / "captioner",
        "filter": folder / "filter",
        "store": folder / "store",
        **given,
    }
    context = RunContext(
        preset=str(folder / "tiny.yaml"), overrides=overrides, store=str(given.pop("store")), revision=revision
    )
    return capfilt(context, out=folder / out, workers=workers, **given)


def choose(
    folder: Path, *overrides: str, data: str = "scored", out: str = "out", page: Path | None = None, **given: Any
) -> SelectResult:
    preset = "" if data != "scored" else str(folder / "tiny.yaml")
    context = RunContext(preset=preset, overrides=overrides, revision="r")
    return select(context, data=folder / data, out=folder / out, page=page, **given)


def run(
    folder: Path, *overrides: str, out: str = "out", page: Path | None = None, selection: tuple[str, ...] = (), **given
) -> SelectResult:
    """CapFilt, and what the recipe selects of its scores."""
    score(folder, *overrides, out=f"{out}-scored", **given)
    context = RunContext(preset=str(folder / "tiny.yaml"), overrides=selection, revision="r")
    return select(context, data=folder / f"{out}-scored", out=folder / out, page=page)


def read(manifest: Manifest) -> dict[str, Sample]:
    return {sample.key: sample for shard in manifest.shards for sample in read_shard(manifest.store, shard)}


def decided(folder: Path) -> dict[str, list[str]]:
    """Returns the kept texts of the shards' tables, by sample."""
    found: dict[str, list[str]] = {}
    for path in sorted(folder.glob("store/capfilt/*/data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            if row["match"] >= 0.5:
                found.setdefault(row["key"], []).append(row["text"])
    return found


def test_training_reads_what_was_kept(folder: Path):
    figures = run(folder, page=folder / "page.html")
    manifest, kept = Manifest.load(folder / "out" / "web.json"), decided(folder)
    assert 0 < len(kept) < 24
    assert {key: sample.texts for key, sample in read(manifest).items()} == kept
    originals = {sample.key: sample for sample in samples(24)}
    assert all(
        sample.images == originals[key].images and sample.meta == originals[key].meta
        for key, sample in read(manifest).items()
    )
    loader = Loader([manifest], lambda s, _: (s.key, s.texts), list, LoaderConfig(batch=len(kept), streams=1))
    assert dict(next(iter(loader))) == kept
    assert figures.counts["images"] == 24
    assert figures.counts["images.kept"] == manifest.samples == len(kept) < manifest.chosen_from == 24
    assert manifest.parents == (Manifest.load(folder / "data" / "web.json").digest,)
    assert set(manifest.meta) >= {"captioner", "filter", "selection", "job"}


def test_the_folder_is_complete(folder: Path):
    figures = run(folder, page=folder / "page.html")
    out = folder / "out"
    assert (out / "gold.json").read_bytes() == (folder / "data" / "gold.json").read_bytes()
    assert (out / "tokenizer" / "vocab.txt").is_file()
    assert (out / "web.json").read_bytes() == (out / "bootstrapped.json").read_bytes()
    assert SelectResult.load(out / "metrics.json").capfilt == figures.capfilt
    assert sum(figures.histograms[0].unknown) == 24
    pictures = load_pictures(out / "pictures.json")
    assert {text.kept for p in pictures for text in p.web} == {True, False}
    originals = {sample.key: sample.images[0] for sample in samples(24)}
    assert all(originals[p.key] == p.image for p in pictures)
    page = (folder / "page.html").read_text()
    assert all(f'alt="{p.key}"' in page for p in pictures[:1])


def test_the_speed_of_the_workers_is_told(folder: Path):
    speed = score(folder).speed
    assert speed.images_per_second > 0
    assert sum(speed.shares.values()) == pytest.approx(1)


def test_what_is_done_is_not_done_again(folder: Path):
    first = run(folder)
    again = run(folder, out="again", workers=nowhere)
    assert (again.noise, again.capfilt, again.counts) == (first.noise, first.capfilt, first.counts)
    assert (folder / "again" / "web.json").read_bytes() == (folder / "out" / "web.json").read_bytes()
    with pytest.raises(AssertionError, match="nothing is left"):
        run(folder, "stream.seed=7", workers=nowhere)
    run(folder, "workers=5", "lease.seconds=9", workers=nowhere)


def test_a_job_leaves_nothing_behind_that_no_commit_names(folder: Path):
    run(folder)
    (home,) = (folder / "store" / "capfilt").iterdir()
    needed = set((home / "data").iterdir())
    (home / "data" / "web-000000-late.parquet").write_bytes(b"of an attempt that came second")
    run(folder, out="again", workers=nowhere)
    assert set((home / "data").iterdir()) == needed
    assert len(needed) == 4  # a table a shard


def test_in_a_bucket_workers_find_data_and_models_there(folder: Path, s3: str):
    write_shards(samples(24), f"{s3}/shards", "web", 6).save(folder / "data" / "web.json")
    figures = run(folder, store=f"{s3}/store")
    manifest = Manifest.load(folder / "out" / "web.json")
    assert manifest.root == f"{s3}/shards"
    assert manifest.shards[0].index_root.startswith(f"{s3}/store/capfilt/")
    run(folder, out="local")
    assert read(manifest) == read(Manifest.load(folder / "local" / "web.json"))
    assert figures.counts["images"] == 24
    assert any(key.endswith("tokenizer/vocab.txt") for key in open_store(f"{s3}/store/models").list())


class Listener(Run):
    """A tracker that records what a run is told."""

    def __init__(self):
        self.heard: list[dict[str, float]] = []

    def metrics(self, values, step: int = 0) -> None:
        assert step >= 0
        self.heard.append(dict(values))


def test_progress_is_told_of_each_worker_and_of_all(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    listener = Listener()
    monkeypatch.setattr("blip.runs.capfilt.start_run", lambda *_, **__: nullcontext(listener))
    monkeypatch.setenv("BLIP_PROGRESS", str(tmp_path / "progress"))
    score(folder)
    curves = listener.heard[-1]
    assert curves["capfilt/shards"] == curves["capfilt/here/shards"] == 4
    assert curves["capfilt/images_per_second"] > 0
    assert curves["capfilt/here/images_per_second"] > 0
    assert 0 < curves["capfilt/match_web"] < 1
    record = json.loads((tmp_path / "progress").read_text().splitlines()[-1])
    assert (record["done"], record["total"], record["losses"]["shards"]) == (24, 24, 4)


def test_another_threshold_needs_no_model_and_no_image(folder: Path):
    run(folder, out="first")
    before = {path: path.stat().st_mtime_ns for path in folder.glob("store/capfilt/*/data/*")}
    for path in (folder / "captioner" / "model.safetensors", folder / "filter" / "model.safetensors"):
        path.unlink()
    for path in folder.glob("shards/web-*"):
        path.rename(path.with_name(f"away-{path.name}"))
    first = folder / "first"
    (first / "pictures.json").unlink()
    manifests = {}
    for name, threshold in (("all", "0"), ("more", "web=1.0, synthetic=0"), ("none", "1.0")):
        manifests[name] = choose_without_pictures(folder, "first", name, threshold)
    assert sum(shard.samples for shard in manifests["all"].shards) == 24
    assert manifests["all"].counts["web.kept"] == manifests["all"].counts["synthetic.kept"] == 24
    assert manifests["more"].counts["web.kept"] == 0 < manifests["more"].counts["synthetic.kept"]
    assert manifests["none"].shards == ()
    assert manifests["none"].counts["images.kept"] == 0
    same = choose_without_pictures(folder, "none", "same", "0.5")
    assert same == Manifest.load(first / "web.json")
    assert {path: path.stat().st_mtime_ns for path in folder.glob("store/capfilt/*/data/*")} == before


def choose_without_pictures(folder: Path, data: str, out: str, threshold: str) -> Manifest:
    """Shards are read for the report's pictures alone, so a selection succeeds without them."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("blip.runs.select.SelectionFigures.pictures", lambda _: [])
        choose(folder, data=data, out=out, threshold=threshold)
    return Manifest.load(folder / out / "web.json")


def test_a_threshold_changes_what_it_names_and_nothing_else(folder: Path):
    rule = "rule={type: matched, web: 0.4, synthetic: 0.9, origins: {laion: {web: 0.8, synthetic: 0.7}}}"
    run(folder, selection=(rule, "repeats=50"), out="first")
    choose(folder, data="first", out="second", threshold="web=0.95")
    found = Manifest.load(folder / "second" / "web.json").meta["selection"]
    assert found["rule"] == {
        "type": "matched",
        "web": 0.95,
        "synthetic": 0.9,
        "origins": {"laion": {"web": 0.8, "synthetic": 0.7}},
    }
    assert found["repeats"] == 50
    choose(folder, "rule.synthetic=0.1", data="second", out="third")
    found = Manifest.load(folder / "third" / "web.json").meta["selection"]
    assert (found["rule"]["web"], found["rule"]["synthetic"], found["repeats"]) == (0.95, 0.1, 50)
    assert found["rule"]["origins"]["laion"]["web"] == 0.8


@pytest.mark.parametrize(
    "wrong", ["high", "web=high", "wbe=0.5", "1.5", "nan", "web=-0.1", "web=0.5,web=0.6", "web=0.5,", "type=0.5"]
)
def test_a_threshold_that_is_none_is_one_line(folder: Path, wrong: str):
    score(folder)
    with pytest.raises(
        ConfigError, match=r"^threshold '.*(must be a number from 0 to 1|must be web or synthetic)"
    ) as error:
        choose(folder, threshold=wrong)
    assert "\n" not in str(error.value)


def test_a_rule_without_thresholds_needs_both(folder: Path):
    score(folder)
    choose(folder, "rule={type: best}", out="best")
    with pytest.raises(ConfigError, match="name both web and synthetic"):
        choose(folder, data="best", threshold="web=0.5")
    choose(folder, data="best", out="both", threshold="0.3")
    assert Manifest.load(folder / "both" / "web.json").meta["selection"]["rule"]["web"] == 0.3


def test_another_selection_asks_no_worker(folder: Path):
    score(folder)
    score(folder, out="again", workers=nowhere)
    one, other = (
        choose(folder, "rule.web=0.7", out="one"),
        choose(folder, data="again", out="other", threshold="web=0.7"),
    )
    assert one.counts == other.counts
    assert (folder / "one" / "web.json").read_bytes() == (folder / "other" / "web.json").read_bytes()


def test_nothing_of_the_input_is_copied_and_names_do_not_grow(folder: Path):
    run(folder, out="first")
    run(folder, out="second", data=folder / "first")
    original = Manifest.load(folder / "data" / "web.json")
    names = {shard.name for shard in original.shards}
    assert not list(folder.glob("store/capfilt/**/*.tar"))
    for out in ("first", "second"):
        manifest = Manifest.load(folder / out / "web.json")
        assert manifest.root == original.root
        assert {shard.name for shard in manifest.shards} <= names
    largest = sum(path.stat().st_size for path in folder.glob("store/capfilt/**/*.parquet"))
    assert largest < 2 * sum(shard.bytes for shard in original.shards)


def test_capfilt_over_what_was_kept_sees_what_was_kept(folder: Path):
    run(folder, out="first")
    first = Manifest.load(folder / "first" / "web.json")
    kept = {key: sample.texts for key, sample in read(first).items()}
    assert len(kept) < 24
    second = run(folder, out="second", data=folder / "first", selection=("rule={type: matched, web: 0, synthetic: 0}",))
    assert second.counts["images"] == len(kept)
    assert second.counts["web"] == sum(map(len, kept.values()))
    found = read(Manifest.load(folder / "second" / "web.json"))
    assert {key: sample.texts[:-1] for key, sample in found.items()} == kept  # and one synthetic text more each


def test_what_was_altered_is_not_selected_from(folder: Path):
    score(folder)
    (home,) = (folder / "store" / "capfilt").iterdir()
    table = next((home / "data").iterdir())
    data = table.read_bytes()
    table.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
    with pytest.raises(ShardError, match="were altered: their sha256 is"):
        choose(folder)
    table.unlink()
    with pytest.raises(ShardError, match="are missing"):
        choose(folder)
    table.write_bytes(data)
    choose(folder)
    commit = next((home / "commit").rglob("*.json"))
    commit.write_text(json.dumps({**json.loads(commit.read_text()), "sha256": "0" * 64}))
    with pytest.raises(ShardError, match=r"commits of .* were altered"):
        choose(folder)


def test_an_altered_index_of_a_selection_is_not_learnt_from(folder: Path):
    run(folder)
    manifest = Manifest.load(folder / "out" / "web.json")
    path = Path(manifest.shards[0].index_root, manifest.shards[0].index)
    lines = path.read_text().splitlines()
    assert len(lines) > 1
    one, other = json.loads(lines[0]), json.loads(lines[1])
    one[2], other[2] = other[2], one[2]
    path.write_text("\n".join([json.dumps(one), json.dumps(other), *lines[2:]]) + "\n")
    with pytest.raises(ShardError, match="altered"):
        read(manifest)
    with pytest.raises(ShardError, match="altered"):
        score(folder, data=folder / "out", out="again")


def test_mistakes_of_a_selection_are_named(folder: Path):
    with pytest.raises(
        ConfigError, match=r"data .* has no scores\.json: name the folder that `blip capfilt` or `blip select` wrote$"
    ):
        choose(folder, data="data")
    score(folder)
    with pytest.raises(ConfigError, match="is the data folder itself"):
        choose(folder, out="scored")
    with pytest.raises(ConfigError, match="is in the data folder"):
        choose(folder, out="scored/kept")
    assert not (folder / "scored" / "kept").exists()
    with pytest.raises(ConfigError, match="run `blip select` on it first"):
        score(folder, data=folder / "scored", out="twice")
    with pytest.raises(ConfigError, match="rul"):
        choose(folder, "rul.web=0.5")
    (folder / "scored" / "scores.json").write_text("{")
    with pytest.raises(ConfigError, match="is not JSON"):
        choose(folder)


def test_figures_know_the_truth_where_samples_tell_it(folder: Path):
    world = list(web_samples(ShapesConfig(web=40, size=16)))
    write_shards(world, folder / "shapes", "web", 20, meta={JUDGE: SHAPES}).save(folder / "data" / "web.json")
    figures, truth = run(folder), {sample.key: sample.meta["truth"] for sample in world}
    assert figures.noise.web.before == 0.5
    kept = [is_true(truth[s.key], s.texts[0]) for s in world if s.texts[0] in decided(folder).get(s.key, [])]
    assert figures.capfilt.web == Kept(precision=np.mean(kept), recall=sum(kept) / 20, kept=len(kept) / 40)
    assert figures.noise.web.after == figures.capfilt.web.precision
    assert figures.histograms[0].unknown == tuple([0] * 20)


def test_a_field_of_the_web_that_is_called_truth_is_not_one(folder: Path):
    odd = [
        Sample(s.key, s.images, s.texts, {"truth": value})
        for s, value in zip(samples(4), ("yes", {"ground": 3}, None, [1]), strict=True)
    ]
    write_shards(odd, folder / "odd", "web", 4).save(folder / "data" / "web.json")
    assert run(folder).noise.web == Change(before=None, after=None)
    write_shards(odd, folder / "odd", "web", 4, meta={JUDGE: SHAPES}).save(folder / "data" / "web.json")
    assert run(folder, out="judged").noise.web.before is None
    write_shards(odd, folder / "odd", "web", 4, meta={JUDGE: "nobody"}).save(folder / "data" / "web.json")
    with pytest.raises(ConfigError, match="'nobody'"):
        run(folder, out="unknown")


def test_one_model_may_be_both(folder: Path):
    both_in_one = model_folder(both(), folder / "both")
    figures = run(folder, captioner=both_in_one, filter=both_in_one)
    assert figures.counts["synthetic"] == 24
    assert figures.capfilt.synthetic.kept > 0


def test_a_chat_model_captions_and_scores_of_two_filters_combine(folder: Path):
    models = {
        "captioner": llava(folder / "llava"),
        "filter": {"filter": folder / "filter", "clip": clip(folder / "clip")},
    }
    score(folder, "captioner.batch=2", **models)
    table = pa.concat_tables(pq.read_table(path) for path in folder.glob("store/capfilt/*/data/*.parquet"))
    assert table.num_rows == 48
    assert all(table[name].null_count == 0 for name in ("match", "similarity", "clip.similarity"))
    commits = [json.loads(path.read_text()) for path in folder.glob("store/capfilt/*/commit/*.json")]
    assert commits[0]["determinism"] == dict.fromkeys(("captioner", "filter", "clip"), "sample")
    rule = (
        "rule={type: combined, web: [{score: match, least: 0.2}, {score: clip.similarity, share: 0.5}], "
        "synthetic: [{score: clip.similarity, share: 0.25}]}"
    )
    for model in ("llava", "clip", "filter"):
        shutil.rmtree(folder / model)  # a selection needs no model
    found = choose(folder, rule)
    rows = table.to_pylist()
    web = sorted((row["clip.similarity"] for row in rows if row["source"] == "web"), reverse=True)
    kept = [row for row in rows if row["source"] == "web" and row["clip.similarity"] >= web[11] and row["match"] >= 0.2]
    assert found.counts["web.kept"] == len(kept)
    assert found.counts["synthetic.kept"] == 6
    assert Manifest.load(folder / "out" / "web.json").meta["selection"]["rule"]["synthetic"][0]["share"] == 0.25
    again = choose(folder, data="out", out="half", threshold="50%", by="clip.similarity")
    assert (again.counts["web.kept"], again.counts["synthetic.kept"]) == (12, 12)
    rule = "rule={type: weighted, weights: {match: 1, clip.similarity: 3}, web: {share: 0.25}, synthetic: {least: 9}}"
    summed = choose(folder, rule, out="summed", page=folder / "summed.html")
    assert (summed.counts["web.kept"], summed.counts["synthetic.kept"]) == (6, 0)
    other = choose(folder, data="summed", out="other", threshold="synthetic=50%")
    assert (other.counts["web.kept"], other.counts["synthetic.kept"]) == (6, 12)
    with pytest.raises(ConfigError, match="siglip"):
        choose(folder, "rule={type: weighted, weights: {siglip.match: 1}}", out="none")
    sure = choose(folder, "rule={type: combined, synthetic: [{score: log_probability, share: 0.25}]}", out="sure")
    assert sure.counts["synthetic.kept"] == 6
    with pytest.raises(ConfigError, match="needs the score 'log_probability', but the filters gave"):
        choose(folder, "rule={type: weighted, weights: {log_probability: 1}}", out="none")


def test_web_texts_are_kept_by_the_precision_that_decoys_promise(folder: Path):
    score(folder, "stream.decoys=true")
    first = choose(folder, "rule={type: matched, web: 0.5, synthetic: 0.3}")
    rows = pa.concat_tables(pq.read_table(path) for path in folder.glob("store/capfilt/*/data/*.parquet")).to_pylist()
    assert {row["source"] for row in rows if row["decoy.match"] is None} == {"synthetic"}
    found = choose(folder, data="out", out="precise", precision=0.3, by="similarity")
    web = [row for row in rows if row["source"] == "web"]
    scores, decoys = (np.sort([row[name] for row in web]).astype("f4") for name in ("similarity", "decoy.similarity"))
    assert found.counts["web.kept"] == count_precise(scores, decoys, 0.3)
    assert found.counts["synthetic.kept"] == first.counts["synthetic.kept"]
    meta = Manifest.load(folder / "precise" / "web.json").meta
    assert meta["selection"]["rule"]["web"][0]["precision"] == 0.3
    assert meta["cutoffs"]["web"][0]["least"] is not None
    assert choose(folder, data="precise", out="all", precision=0.01).counts["web.kept"] == 24


def test_a_precision_without_decoys_or_beside_a_threshold_is_refused(folder: Path):
    score(folder)
    choose(folder)
    with pytest.raises(ConfigError, match=r"run capfilt with stream\.decoys=true"):
        choose(folder, precision=0.9)
    with pytest.raises(ConfigError, match=r"threshold '0\.5' and precision 0\.9: name one of them"):
        choose(folder, precision=0.9, threshold="0.5")
    with pytest.raises(ConfigError, match="must be above 0 and below 1"):
        choose(folder, precision=90.0)
    choose(folder, "rule={type: best}", out="best")
    with pytest.raises(ConfigError, match=r"web: \[\{precision: 0\.9\}\]"):
        choose(folder, data="best", out="again", precision=0.9)
    with pytest.raises(ConfigError, match="'decoy'"):
        score(folder, filter={"decoy": folder / "filter"})


def test_equal_jobs_of_others_models_write_equal_tables(folder: Path):
    models = {"captioner": git(folder / "git"), "filter": siglip(folder / "siglip")}
    first = score(folder, **models)
    assert score(folder, store=folder / "elsewhere", out="second", **models).digest == first.digest
    score(folder, out="again", workers=nowhere, **models)
    with pytest.raises(AssertionError, match="nothing is left"):
        score(folder, "captioner.batch=3", out="again", workers=nowhere, **models)


def test_a_rule_of_a_score_that_no_filter_gave_is_refused(folder: Path):
    score(folder, "variant=filter", filter=clip(folder / "clip"))
    with pytest.raises(ConfigError, match="needs the score 'match', but the filters gave similarity; name one of"):
        choose(folder)
    with pytest.raises(ConfigError, match=r"needs the score 'siglip\.match'"):
        choose(folder, threshold="0.3", by="siglip.match")
    assert choose(folder, threshold="25%", by="similarity", page=folder / "page.html").counts["web.kept"] == 6
    assert "similarity" in (folder / "page.html").read_text()
    with pytest.raises(ConfigError, match="by 'similarity': name a threshold"):
        choose(folder, by="similarity")


def test_filters_have_names_of_their_own(folder: Path):
    with pytest.raises(ConfigError, match=r"filter 'a\.b': a name has letters, digits, _ and -, and is not captioner"):
        score(folder, filter={"a.b": folder / "filter"})


def test_variants(folder: Path):
    everything = run(folder, "variant=captioner", out="captioner-only", filter=None)
    assert everything.capfilt.web.kept == everything.capfilt.synthetic.kept == 1
    filtered = run(folder, "variant=filter", out="filter-only", captioner=None)
    assert filtered.counts["synthetic"] == 0
    assert 0 < filtered.capfilt.web.kept < 1
    ranked = run(folder, "stream.captions=3", selection=("rule={type: best, keep: 2}",), out="ranked")
    assert ranked.counts["synthetic"] == 72
    assert all(len(sample.texts) == 2 for sample in read(Manifest.load(folder / "ranked" / "web.json")).values())


def test_tars_that_somebody_else_wrote(folder: Path):
    (folder / "data" / "web.json").unlink()
    for path in (folder / "shards").glob("*.idx.jsonl"):
        path.unlink()
    run(folder, f"source={folder}/shards/web-")
    assert {key: sample.texts for key, sample in read(Manifest.load(folder / "out" / "web.json")).items()} == decided(
        folder
    )


def test_a_worker_that_is_killed_is_replaced(folder: Path):
    @contextmanager
    def killed(uri: str) -> Iterator[Callable[[], bool]]:
        with on_this_machine(uri, 1, folder / "logs") as working:
            assert working()
            while not list((folder / "store").glob("capfilt/*/worker/*.json")):
                assert working()
                time.sleep(0.05)
            (child,) = children(os.getpid())
            os.kill(child, signal.SIGKILL)
            yield working

    run(folder, workers=killed)
    assert len(list((folder / "logs").glob("worker-1-*.log"))) == 2
    lost = Manifest.load(folder / "out" / "web.json")
    shutil.rmtree(folder / "store")
    run(folder, out="undisturbed")
    assert lost.digest == Manifest.load(folder / "undisturbed" / "web.json").digest


def children(parent: int) -> list[int]:
    """Returns the processes that run workers."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        pid, rest = int(stat.parent.name), stat.read_text().rpartition(")")[2].split()
        if int(rest[1]) == parent and b"blip.runs.worker" in (stat.parent / "cmdline").read_bytes():
            found.append(pid)
    return found


def test_a_worker_that_cannot_begin_ends_the_step(folder: Path):
    save_file({"of.another.model": torch.ones(1)}, folder / "filter" / "model.safetensors")
    with pytest.raises((WorkerError, ConfigError), match=r"worker-1-\w+ ended with code .*log: "):
        run(folder, workers=lambda uri: on_this_machine(uri, 1, folder / "logs"))


def test_few_broken_shards_are_named_and_many_end_the_job(folder: Path):
    web = Manifest.load(folder / "data" / "web.json")
    web.store.path(web.shards[1].name).write_bytes(b"cut")
    with pytest.raises(
        ShardError, match=rf"1 of 4 shards were set aside.*{web.shards[1].name} after 4 attempts.*cut short"
    ):
        run(folder)
    figures = run(folder, "lost=0.25", workers=nowhere)
    assert len(figures.dead) == 1
    assert web.shards[1].sha256 in figures.dead[web.shards[1].name]
    assert Manifest.load(folder / "out" / "web.json").meta["dead"] == [web.shards[1].name]


def test_web_data_without_a_sample_are_refused_before_any_work(folder: Path):
    manifest = Manifest.load(folder / "data" / "web.json")
    manifest.model_copy(update={"shards": ()}).save(folder / "data" / "web.json")
    with pytest.raises(ConfigError, match=r"the web data web of .*: there is no sample in it"):
        score(folder, workers=nowhere)


def test_mistakes_are_named_before_any_work(folder: Path):
    with pytest.raises(ConfigError, match="captioner '': name a model folder, or set variant"):
        run(folder, captioner=None)
    with pytest.raises(ConfigError, match=r"source 'wob': there is no .*wob.json.* or FOLDER after `blip ingest "):
        run(folder, "source=wob")
    with pytest.raises(ConfigError, match=r"unknown key stream\.bach; did you mean batch"):
        run(folder, "stream.bach=3")
    (folder / "file").write_text("")
    with pytest.raises(StoreError, match="cannot be written"):
        run(folder, store=folder / "file")


def test_a_job_is_the_same_as_long_as_its_output_is(folder: Path):
    job = CapFiltJob(config=CapFiltConfig(), input=Manifest.load(folder / "data" / "web.json"), models={})

    def changed(**config) -> str:
        return job.model_copy(update={"config": CapFiltConfig(**config)}).identity

    assert changed(workers=7, threads=3, report=9, lost=0.5) == job.identity
    assert changed(variant="filter") != job.identity
    assert changed(skip=("small",)) != job.identity
    assert job.model_copy(update={"revision": "next"}).identity == job.identity
    later = job.input.model_copy(update={"revision": "next", "root": "elsewhere"})
    assert job.model_copy(update={"input": later}).identity == job.identity
    fewer = job.input.model_copy(update={"shards": job.input.shards[1:]})
    assert job.model_copy(update={"input": fewer}).identity != job.identity
    shard = job.input.shards[0].model_copy(update={"index": "some", "index_sha256": "1" * 64})
    chosen = job.input.model_copy(update={"shards": (shard, *job.input.shards[1:])})
    assert job.model_copy(update={"input": chosen}).identity != job.identity


@pytest.mark.parametrize("preset", presets())
def test_presets_are_sound(preset: str):
    assert load_config(CapFiltConfig, "capfilt", preset).stream.captions >= 1
