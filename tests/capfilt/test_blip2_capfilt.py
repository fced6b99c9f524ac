"""The data of BLIP-2 from end to end: its second stage writes ten captions an image, its first one ranks them with the
web text, and training takes the two most similar ones."""

from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from tiny_blip2 import WIDTH, blip2_config, clip, opt, t5
from tiny_models import tokenizer

from blip.runs.capfilt import capfilt
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.runs.select import select
from blip.runs.train import train
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.model_folder import save_model
from blip.tasks.text import TextLengths

PRESET = "blip2_capfilt"
WORLD = ("data.world.gold=4", "data.world.web=6", "data.world.test=2", "per_shard=3")
HERE = (
    "quality.min_side=16",
    "stream.precision=float32",
    "stream.batch=3",
    "lease.seconds=5",
    "report=0.2",
    "workers=1",
    "threads=1",
)
LENGTHS = TextLengths(tokens=16)
TRAINING = (
    "steps=2",
    "sources=[web]",
    "model.text={width: 16, depth: 2, heads: 2, feed_forward: 32, positions: 48}",
    "model.queries=4",
    "init.text=null",
    "transform={size: 16, min_scale: 1.0, flip: false}",
    "loader={batch: 3, micro_batch: null, workers: 0}",
    "schedule={warmup_steps: 1}",
)


@pytest.fixture(autouse=True)
def untracked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("BLIP_TRACKING", "off")


@pytest.mark.parametrize("kind", ["opt", pytest.param("t5", marks=pytest.mark.slow)])
def test_captions_of_a_blip2_become_the_data_of_the_next(tmp_path: Path, kind: str):
    def run(preset: str, *overrides: str) -> RunContext:
        return RunContext(preset=preset, overrides=overrides, store=str(tmp_path / "store"))

    data, scored, kept = tmp_path / "data", tmp_path / "scored", tmp_path / "kept"
    ingest(run("shapes", *WORLD), "shapes", out=data)
    vision, language = clip(tmp_path / "clip"), (opt if kind == "opt" else t5)(tmp_path / "language")
    torch.manual_seed(0)
    second, first = Blip2Stage2Config(text=LENGTHS), Blip2Stage1Config(text=LENGTHS)
    for name, cfg, model in (
        ("captioner", second, blip2_config(vision, language)),
        ("filter", first, blip2_config(vision)),
    ):
        save_model(cfg.build_task(cfg.model_from(model.with_digests()), tokenizer()), tmp_path / name)

    models = {"captioner": tmp_path / "captioner", "filter": tmp_path / "filter"}
    made = capfilt(run(PRESET, *HERE), data=data, **models, out=scored)
    assert not made.dead
    texts = defaultdict(list)
    for path in sorted((tmp_path / "store" / "capfilt").glob("*/data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            texts[row["key"]].append(row)
    assert len(texts) == 6
    for rows in texts.values():
        assert sum(row["source"] == "web" for row in rows) == 1
        assert 2 <= len(rows) <= 11  # equal captions are one

    select(run(PRESET, "drop=[]"), data=scored, out=kept)
    manifest = Manifest.load(kept / "web.json")
    chosen = {sample.key: sample.texts for shard in manifest.shards for sample in read_shard(manifest.store, shard)}
    assert chosen.keys() == texts.keys()
    for key, rows in texts.items():
        best = sorted(rows, key=lambda row: -row["similarity"])[:2]
        assert set(chosen[key]) == {row["text"] for row in best}

    sizes = (*TRAINING, f"model.vision={{source: {vision}, size: 16, width: {WIDTH}}}")
    trained = train(run(PRESET, *sizes), "blip2_stage1", data=kept, out=tmp_path / "next")
    assert trained.steps == 2
    assert set(trained.losses) == {"itc", "itm", "lm", "loss"}
