"""BLIP-2 of transformers, and of ours, where models are named: caption, match, capfilt, import, export."""

import json
from pathlib import Path

import pytest
import torch
from fake_hub import use_hub
from PIL import Image
from tiny_blip2 import blip2_config, clip, opt, shuffle, their_generator
from tiny_models import captioner, model_folder, picture, tokenizer
from transformers import (
    Blip2Config,
    Blip2ForConditionalGeneration,
    Blip2ForImageTextRetrieval,
    Blip2QFormerConfig,
    Blip2VisionConfig,
    BlipImageProcessor,
    OPTConfig,
)
from typer.testing import CliRunner

from blip.cli import app
from blip.config import ConfigError
from blip.data.transforms import MEAN, STD
from blip.models.generation import Beam
from blip.models.weights.transformers_blip2 import encoder_of
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.model_folder import load_task, read_model_config, save_model
from blip.zoo.config import DualEncoderConfig
from blip.zoo.load import check_captioner, check_filter, load_filter
from blip.zoo.recognise import recognise
from blip.zoo.source import model_folder as folder_of
from blip.zoo.source import our_model

TEXTS = ["a red circle", "a large blue square"]


@pytest.fixture(autouse=True)
def cache(monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory) -> None:
    """Converted models go to a folder of the test."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HOME", str(tmp_path_factory.mktemp("hub")))


def parts(text: bool) -> tuple[Blip2VisionConfig, Blip2QFormerConfig]:
    vision = Blip2VisionConfig(
        hidden_size=16, intermediate_size=24, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=8
    )
    qformer = Blip2QFormerConfig(
        vocab_size=tokenizer().vocab_size - 1,
        hidden_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=32,
        encoder_hidden_size=16,
        max_position_embeddings=40,
        cross_attention_frequency=2,
        use_qformer_text_input=text,
    )
    return vision, qformer


def statistics(folder: Path) -> None:
    size = {"height": 16, "width": 16}
    BlipImageProcessor(size=size, image_mean=list(MEAN), image_std=list(STD)).save_pretrained(folder)


def matcher(folder: Path) -> Path:
    """Writes a Blip2ForImageTextRetrieval as its release lies on the hub, with the tokenizer of its Q-Former."""
    vision, qformer = parts(text=True)
    config = Blip2Config(
        vision_config=vision,
        qformer_config=qformer,
        text_config=OPTConfig(num_hidden_layers=0),
        num_query_tokens=3,
        image_text_hidden_size=8,
    )
    shuffle(Blip2ForImageTextRetrieval(config)).save_pretrained(folder)
    tokenizer().save(folder)
    statistics(folder)
    return folder


def generator(folder: Path) -> Path:
    """Writes a Blip2ForConditionalGeneration with the tokenizer of its language model alone."""
    vision, qformer = parts(text=False)
    opt(folder / "language")
    their_generator(folder, folder / "language", vision, qformer, queries=3)
    statistics(folder)
    return folder


def blip(*words: object) -> str:
    """Returns the JSON that a verb prints."""
    done = CliRunner().invoke(app, [*map(str, words), "--json"])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_a_matcher_of_transformers_is_a_filter_with_its_own_scores(tmp_path: Path):
    source = matcher(tmp_path / "matcher")
    assert recognise(source) == "blip2_matcher"
    (tmp_path / "image.png").write_bytes(picture(0))
    shown = json.loads(blip("match", tmp_path / "image.png", *TEXTS, "--model", source))["rows"]
    ours = load_task(folder_of(source))
    assert isinstance(ours, Blip2Stage1)
    theirs = Blip2ForImageTextRetrieval.from_pretrained(source).eval()
    judge = load_filter(folder_of(source), "float32", DualEncoderConfig())
    with Image.open(tmp_path / "image.png") as image:
        view = judge.view.make(image.convert("RGB"))
    encoder = encoder_of(ours.model)
    pixels = (view[None] / 255 - encoder.mean) / encoder.std
    with torch.no_grad():
        for row in shown:
            text = tokenizer().encode([row["text"]], 16)
            options = {"pixel_values": pixels, "input_ids": text.ids, "attention_mask": text.mask.long()}
            matched = theirs(**options, use_image_text_matching_head=True).logits_per_image.softmax(1)[0, 1]
            assert row["match"] == pytest.approx(float(matched), abs=2e-5)
            assert row["similarity"] == pytest.approx(float(theirs(**options).logits_per_image), abs=2e-5)


def test_a_generator_of_transformers_captions_as_it_is(tmp_path: Path):
    source = generator(tmp_path / "generator")
    assert recognise(source) == "blip2_generator"
    check_captioner(folder_of(source))
    (tmp_path / "image.png").write_bytes(picture(0))
    table = ["--out", tmp_path / "c.csv", "--set", "decoding.max_length=8", "--set", "captioner.batch=1"]
    blip("caption", tmp_path / "image.png", "--model", source, *table)
    assert (tmp_path / "c.csv").read_text(encoding="utf-8").count("image.png") == 1
    with pytest.raises(ConfigError, match="writes texts but scores none"):
        check_filter(source)
    with pytest.raises(ConfigError, match="writes no texts"):
        check_captioner(matcher(tmp_path / "matcher"))


def test_a_generator_becomes_a_model_of_ours_where_one_is_needed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use_hub(tmp_path / "hub", "http://127.0.0.1:9", monkeypatch, offline=True)
    source = generator(tmp_path / "generator")
    with pytest.raises(ConfigError, match=r"the tokenizer of its Q-Former, BERT's, is not beside it; name one by"):
        our_model(source, "evaluation")
    tokenizer().save(tmp_path / "bert")
    out = tmp_path / "ours"
    said = json.loads(blip("import", source, "--out", out, "--tokenizer", tmp_path / "bert"))
    assert said["model"].startswith("blip2_stage2, 16 pixels, ViT 16, text 2 x 24, ")
    assert isinstance(read_model_config(out).task, Blip2Stage2Config)
    (tmp_path / "image.png").write_bytes(picture(0))
    blip(
        "caption", tmp_path / "image.png", "--model", out, "--out", tmp_path / "c.jsonl", "--set", "decoding.type=beam"
    )
    (row,) = map(json.loads, (tmp_path / "c.jsonl").read_text(encoding="utf-8").splitlines())
    assert row["log_probability"] < 0
    blip("export", "--model", out, "--out", tmp_path / "exported", "--format", "hf")
    again = Blip2ForConditionalGeneration.from_pretrained(tmp_path / "exported")
    first = Blip2ForConditionalGeneration.from_pretrained(source)
    assert torch.equal(again.query_tokens, first.query_tokens)
    with pytest.raises(ConfigError, match="leave out settings"):
        folder_of(source, overrides=["model.queries=3"], ours=True)


@pytest.mark.parametrize("kind", ["matcher", "generator"])
def test_what_transformers_wrote_is_judged_and_registered(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    monkeypatch.chdir(tmp_path)
    photos(tmp_path / "photos")
    blip("ingest", "photos", "--preset", "shapes", "--out", "data", "--split", "0.5/0.5")
    model = matcher(tmp_path / "theirs") if kind == "matcher" else generator(tmp_path / "theirs")
    if kind == "generator":
        tokenizer().save(tmp_path / "bert")
        blip("import", model, "--out", "model", "--tokenizer", "bert")
        model = tmp_path / "model"
    task, gate = ("retrieval", "retrieval.mean") if kind == "matcher" else ("captioning", "captioning.cider")
    lengths = ["--set", f"{task}.text.tokens=24", "--set", "workers=1"]
    judging = ["evaluate", "--preset", "shapes", "--data", "data", "--model", model, "--task", task, *lengths]
    judged = json.loads(blip(*judging, "--out", "scores"))
    assert 0 <= judged["scores"][task][gate.partition(".")[2]] <= 1000
    figures = ["--before", "scores/metrics.json", "--after", "scores/metrics.json"]
    decided = json.loads(blip("register", "theirs", "--model", model, *figures, "--set", f"gate={{{gate}: -1000}}"))
    assert decided["registered"], decided
    loaded = folder_of("models:/theirs@champion")
    assert recognise(loaded) == "ours"
    assert torch.equal(
        next(load_task(loaded).model.parameters()), next(load_task(our_model(model, "a test")).model.parameters())
    )


def photos(folder: Path) -> None:
    folder.mkdir()
    for i in range(8):
        (folder / f"{i}.png").write_bytes(picture(i))
        (folder / f"{i}.txt").write_text(TEXTS[i % 2])


def test_ours_of_both_stages_are_taken_for_capfilt_before_it_starts(tmp_path: Path):
    vision, language = clip(tmp_path / "vision"), opt(tmp_path / "language")
    second = Blip2Stage2Config(decoding=Beam(beams=1, min_length=1, max_length=6))
    cfg = blip2_config(vision, language).with_digests()
    save_model(second.build_task(second.model_from(cfg), tokenizer()), tmp_path / "second")
    first = Blip2Stage1Config()
    save_model(first.build_task(first.model_from(blip2_config(vision).with_digests()), tokenizer()), tmp_path / "first")
    check_captioner(tmp_path / "second")
    check_filter(tmp_path / "first")
    with pytest.raises(ConfigError, match="blip2_stage2"):
        check_filter(tmp_path / "second")
    with pytest.raises(ConfigError, match="captioning"):
        check_filter(Path(model_folder(captioner(), tmp_path / "blip")))


def test_a_class_of_blip2_without_a_role_is_named(tmp_path: Path):
    (tmp_path / "config.json").write_text(
        json.dumps({"model_type": "blip-2", "architectures": ["Blip2Model"]}), encoding="utf-8"
    )
    with pytest.raises(ConfigError, match="its class is Blip2Model; of BLIP-2 known are Blip2ForImageTextRetrieval"):
        recognise(tmp_path)
