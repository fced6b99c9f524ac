import json
import subprocess
import sys

from typer.testing import CliRunner

from blip.cli import app
from blip.config import EXIT_CONFIG


def blip(*arguments: object) -> tuple[int, str, str]:
    """Exit code, output and errors of a verb."""
    done = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.stdout, done.stderr


def test_every_verb_is_found_without_loading_what_it_needs():
    code = "import sys; from blip.cli import app; print(*(c.callback.__name__ for c in app.registered_commands), 'torch' in sys.modules)"
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert said.split() == ["ingest", "train", "capfilt", "evaluate", "register", "export", "summary", "False"]


def test_a_wrong_preset_is_one_line_and_an_exit_code_that_says_not_to_try_again(tmp_path):
    code, _, errors = blip("ingest", "shapes", "--preset", "shape", "--out", tmp_path / "data", "--store", tmp_path / "store")
    assert code == EXIT_CONFIG
    assert errors.startswith("blip: preset 'shape' is neither one of: base, large, reference, shapes; nor a .yaml file")
    assert errors.count("\n") == 1


def test_a_wrong_key_names_the_choices(tmp_path):
    code, _, errors = blip("ingest", "shapes", "--set", "per_shrd=3", "--out", tmp_path / "data", "--store", tmp_path / "store")
    assert code == EXIT_CONFIG
    assert "unknown key per_shrd; did you mean per_shard? choices: data, per_shard, tokenizer, vocab_size" in errors


def test_a_store_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    code, _, errors = blip("ingest", "shapes", "--out", tmp_path / "data", "--store", tmp_path / "file" / "store")
    assert code == 1
    assert str(tmp_path / "file" / "store") in errors


def test_ingest_tells_its_figures_as_json(tmp_path):
    sizes = [f"data.world.{split}={count}" for split, count in {"gold": 6, "web": 8, "test": 4}.items()]
    settings = [word for size in sizes for word in ("--set", size)]
    code, said, _ = blip("ingest", "shapes", *settings, "--out", tmp_path / "data", "--store", tmp_path / "store")
    assert code == 0
    assert json.loads(said)["gold"]["samples"] == 6
    assert {path.name for path in (tmp_path / "data").iterdir()} == {"gold.json", "web.json", "test.json", "tokenizer"}


def test_summary_shows_before_and_after(tmp_path):
    change = {"before": 0.5, "after": 0.93}
    kept = {"precision": 0.93, "recall": 0.84, "kept": 0.45}
    ranks = {"tr1": 1.2, "tr5": 5.0, "tr10": 9.6, "ir1": 1.0, "ir5": 5.2, "ir10": 9.1}
    captions = {"true": 0.4, "cider": 0.6, "bleu4": 0.2}
    figures = {
        "noise": {"web": change, "synthetic": change},
        "capfilt": {"web": kept, "synthetic": kept},
        "retrieval": {"before": ranks, "after": ranks},
        "caption": {"before": captions, "after": captions},
        "registered": True,
    }
    (tmp_path / "summary.json").write_text(json.dumps(figures))
    code, said, _ = blip("summary", tmp_path / "summary.json")
    assert code == 0
    assert "50% of the web texts were true, 93% of those kept" in said
