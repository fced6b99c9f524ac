"""The data of BLIP-2 by the commands of README.md: its second stage writes ten captions an image, a filter ranks them
with the web text, and both stages of the next BLIP-2 learn from the two most similar ones."""

import json
import re
import shlex
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
import yaml
from tiny_blip2 import WIDTH, WORDS, blip2_config, clip, opt, t5
from tiny_models import tokenizer
from typer.testing import CliRunner

from blip.cli.program import app
from blip.runs.context import RunContext
from blip.runs.ingest import ingest
from blip.shards.manifest import Manifest
from blip.shards.reading import read_shard
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.model_folder import load_task, save_model
from blip.tasks.text import TextLengths

ROOT = Path(__file__).parents[2]
PRESET = "blip2_capfilt"
COMMANDS = re.findall(
    rf"^ +(blip .*--preset {PRESET} .*)$", (ROOT / "README.md").read_text(encoding="utf-8"), re.MULTILINE
)
WORLD = ("data.world.gold=4", "data.world.web=6", "data.world.test=2", "per_shard=3")
LENGTHS = TextLengths(tokens=16)
CAPTIONER, FILTER = "captioner", "openai/clip-vit-large-patch14"
"""The models of the commands, here folders of tiny ones."""


def tiny(vision: str, language: str) -> dict[str, object]:
    """The preset with all that has a size made small."""
    return {
        "extends": PRESET,
        "capfilt": {
            "quality": {"min_side": 16},
            "stream": {"precision": "float32", "batch": 3},
            "lease": {"seconds": 5},
            "report": 0.2,
            "workers": 1,
            "threads": 1,
        },
        "select": {"drop": []},
        "blip2_stage1, blip2_stage2": {
            "steps": 2,
            "model": {
                "vision": {"source": vision, "size": 16, "width": WIDTH},
                "text": {"width": 16, "depth": 2, "heads": 2, "feed_forward": 32, "positions": 48},
                "queries": 4,
            },
            "init": {"text": None},
            "transform": {"size": 16, "min_scale": 1.0, "flip": False},
            "loader": {"batch": 3, "micro_batch": None, "workers": 0},
            "schedule": {"warmup_steps": 1},
        },
        "blip2_stage2": {"model": {"language_model": {"source": language, "width": WORDS}}},
    }


@pytest.mark.parametrize("kind", ["opt", pytest.param("t5", marks=pytest.mark.slow)])
def test_captions_of_a_blip2_become_the_data_of_the_next(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("BLIP_TRACKING", "off")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.chdir(tmp_path)
    store = str(tmp_path / "runs" / "store")
    ingest(RunContext(preset="shapes", overrides=WORLD, store=store), "shapes", out=tmp_path / "data")
    vision, language = clip(tmp_path / "clip"), (opt if kind == "opt" else t5)(tmp_path / "language")
    (tmp_path / "tiny.yaml").write_text(yaml.safe_dump(tiny(vision, language), sort_keys=False), encoding="utf-8")
    torch.manual_seed(0)
    second, first = Blip2Stage2Config(text=LENGTHS), Blip2Stage1Config(text=LENGTHS)
    for name, cfg, model in (
        (CAPTIONER, second, blip2_config(vision, language)),
        (FILTER, first, blip2_config(vision)),
    ):
        save_model(cfg.build_task(cfg.model_from(model.with_digests()), tokenizer()), tmp_path / name)

    assert [command.split()[1] for command in COMMANDS] == ["capfilt", "select", "train", "train"]
    for command in COMMANDS:
        words = shlex.split(command.replace(PRESET, "tiny.yaml"))[1:]
        if words[0] == "train":  # a process trains once
            done = subprocess.run(
                [sys.executable, "-m", "blip.cli", *words], capture_output=True, text=True, check=False
            )
            assert done.returncode == 0, f"{command}\n{done.stderr}"
        else:
            done = CliRunner().invoke(app, words)
            assert done.exit_code == 0, f"{command}\n{done.output}"

    texts = defaultdict(list)
    for path in sorted((tmp_path / "runs" / "store" / "capfilt").glob("*/data/*.parquet")):
        for row in pq.read_table(path).to_pylist():
            texts[row["key"]].append(row)
    assert len(texts) == 6
    for rows in texts.values():
        assert sum(row["source"] == "web" for row in rows) == 1
        assert 2 <= len(rows) <= 11  # equal captions are one
    manifest = Manifest.load(tmp_path / "best" / "web.json")
    chosen = {sample.key: sample.texts for shard in manifest.shards for sample in read_shard(manifest.store, shard)}
    assert chosen.keys() == texts.keys()
    for key, rows in texts.items():
        best = sorted(rows, key=lambda row: -row["similarity"])[:2]
        assert set(chosen[key]) == {row["text"] for row in best}
    for name in ("stage1", "stage2"):
        assert json.loads((tmp_path / name / "run.json").read_text())["sources"] == ["gold", "web"]
        assert load_task(tmp_path / name).cfg.type == f"blip2_{name}"
