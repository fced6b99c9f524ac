"""A model folder exported to another format and imported again is the same model."""

import json
import logging
import re
import subprocess
import sys
from pathlib import Path
from typing import Literal

import pytest
import torch
import transformers
from PIL import Image
from tiny_models import config, tokenizer
from transformers import (
    BlipForConditionalGeneration,
    BlipForImageTextRetrieval,
    BlipForQuestionAnswering,
    BlipProcessor,
)
from typer.testing import CliRunner

from blip.cli import app
from blip.data.tokenizer import Tokenizer, clean_caption, clean_question
from blip.data.transforms import TransformConfig, eval_transform, normalise
from blip.models.bert import TextConfig
from blip.models.med import MED, MEDConfig, replace_first
from blip.models.vision import VisionConfig
from blip.models.weights.content import SIDE_FILE
from blip.models.weights.files import WeightsError, read_tensors
from blip.models.weights.load import load_weights
from blip.runs.config import RunConfig
from blip.runs.export import export
from blip.tasks.alignment import AlignmentConfig
from blip.tasks.captioning import Captioning, CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.dialog import DialogConfig
from blip.tasks.model_folder import as_captioner, load_task, save_model
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.pretraining import Pretraining, PretrainingConfig
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.text import TextLengths
from blip.tasks.training_state import load_training_state, save_training_state
from blip.tasks.vqa import VQAConfig

MODEL = MEDConfig(
    vision=VisionConfig(size=16, patch=8, width=16, depth=2, heads=2, init_std=0.2),
    text=TextConfig(width=16, depth=7, heads=2, feed_forward=32, positions=40, init_std=0.3),
    embed=8,
)
ALIGNMENT = AlignmentConfig(queue=6)
TASKS = {
    "pretraining": PretrainingConfig(alignment=ALIGNMENT),
    "captioning": CaptioningConfig(),
    "retrieval": RetrievalConfig(alignment=ALIGNMENT),
    "vqa": VQAConfig(),
    "nlvr": NLVRConfig(text=TextLengths(words=40, tokens=40, pad="longest")),
}
CLASSES = {
    "captioning": BlipForConditionalGeneration,
    "retrieval": BlipForImageTextRetrieval,
    "vqa": BlipForQuestionAnswering,
}


def folder(cfg: TaskConfig, path: Path, model: MEDConfig = MODEL) -> Path:
    """A model folder with random weights."""
    tokenizer = Tokenizer.train(["a red circle", "a blue square", "the left of a ring"], 64)
    run = RunConfig(
        epochs=1, sources=("gold",), task=cfg, model=model, transform=TransformConfig(size=16)
    ).with_tokenizer(tokenizer)
    torch.manual_seed(0)
    save_model(cfg.build_task(cfg.build_model(run.model), tokenizer), path)
    return path


@pytest.mark.parametrize("kind", TASKS)
def test_the_reference_gets_every_tensor_and_gives_it_back(kind: str, tmp_path: Path):
    source = folder(TASKS[kind], tmp_path / "model")
    [out] = export(source, tmp_path / "out", "official")
    ours = load_task(source).model
    model = TASKS[kind].build_model(ours.cfg)
    report = load_weights(model, str(out / "model.pth"), TASKS[kind].DIFFERENCES)  # with teacher and queue
    assert not report.missing
    theirs = dict(model.named_parameters())
    assert all(p.equal(theirs[name]) for name, p in ours.named_parameters())
    assert (out / "vocab.txt").is_file()


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_loads_the_folder_without_a_warning(kind: str, tmp_path: Path, caplog: pytest.LogCaptureFixture):
    source = folder(TASKS[kind], tmp_path / "model")
    [out] = export(source, tmp_path / "out", "hf")
    transformers.logging.enable_propagation()
    with caplog.at_level(logging.WARNING):
        theirs, info = CLASSES[kind].from_pretrained(out, output_loading_info=True)
        BlipProcessor.from_pretrained(out)
    transformers.logging.disable_propagation()
    assert not any(info.values())
    assert not caplog.records
    ours = load_task(source).model
    assert theirs.vision_model.post_layernorm.weight.equal(ours.visual_encoder.norm.weight)


@pytest.mark.parametrize("format", ["official", "hf"])
@pytest.mark.parametrize("kind", CLASSES)
def test_what_the_command_exports_comes_back_as_the_same_model(kind: str, format: str, tmp_path: Path):
    source, out = folder(TASKS[kind], tmp_path / "model"), tmp_path / "out"
    done = CliRunner().invoke(app, ["export", "--model", str(source), "--format", format, "--out", str(out)])
    assert (done.exit_code, done.stdout.split()) == (0, [str(out)]), done.output
    ours = load_task(source).model
    model = TASKS[kind].build_model(ours.cfg)
    report = load_weights(model, str(out if format == "hf" else out / "model.pth"), TASKS[kind].DIFFERENCES)
    assert not report.missing
    theirs = dict(model.named_parameters())
    assert all(p.equal(theirs[name]) for name, p in ours.named_parameters())
    assert (out / SIDE_FILE).is_file() == (format == "hf" and kind == "retrieval")


@pytest.mark.parametrize("kind", CLASSES)
def test_transformers_gets_the_sizes_constants_and_token_ids_of_the_model(kind: str, tmp_path: Path):
    source = folder(TASKS[kind], tmp_path / "model")
    [out] = export(source, tmp_path / "out", "hf")
    theirs, cfg = CLASSES[kind].from_pretrained(out), load_task(source).model.cfg
    text, vision = theirs.config.text_config, theirs.config.vision_config
    assert (text.num_attention_heads, vision.num_attention_heads) == (cfg.text.heads, cfg.vision.heads)
    assert {m.eps for m in theirs.vision_model.modules() if isinstance(m, torch.nn.LayerNorm)} == {1e-6}
    texts = [getattr(theirs, name) for name in ("text_encoder", "text_decoder") if hasattr(theirs, name)]
    assert texts
    assert {m.eps for part in texts for m in part.modules() if isinstance(m, torch.nn.LayerNorm)} == {cfg.text.eps}
    ids = cfg.tokens
    assert (text.vocab_size, text.bos_token_id, text.eos_token_id) == (cfg.text.vocab_size, ids.dec, ids.sep)
    assert (text.sep_token_id, text.pad_token_id) == (ids.sep, ids.pad)
    tokenizer = BlipProcessor.from_pretrained(out).tokenizer
    assert tokenizer.convert_tokens_to_ids(["[DEC]", "[ENC]", "[SEP]", "[PAD]", "[CLS]"]) == [
        ids.dec,
        ids.enc,
        ids.sep,
        ids.pad,
        ids.cls,
    ]


def test_a_pretrained_model_becomes_one_that_writes_and_one_that_matches(tmp_path: Path):
    written = export(folder(TASKS["pretraining"], tmp_path / "model"), tmp_path / "out", "hf")
    assert [path.name for path in written] == ["BlipForConditionalGeneration", "BlipForImageTextRetrieval"]
    BlipForConditionalGeneration.from_pretrained(written[0])
    BlipForImageTextRetrieval.from_pretrained(written[1])


def test_the_processor_prepares_images_and_texts_as_we_do(tmp_path: Path):
    source = folder(TASKS["retrieval"], tmp_path / "model")
    [out] = export(source, tmp_path / "out", "hf")
    processor = BlipProcessor.from_pretrained(out)
    image = Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB")
    ours = normalise(eval_transform(16)(image))
    theirs = processor(images=image, text="the red square", return_tensors="pt")
    torch.testing.assert_close(theirs["pixel_values"][0], ours, atol=0.05, rtol=0)
    tokenizer = Tokenizer.from_folder(source / "tokenizer")
    expected = replace_first(tokenizer.encode(["the red square"], 20).ids, tokenizer.enc)
    assert theirs["input_ids"].tolist() == expected.tolist(), "matching reads its text from [ENC]"
    assert (processor.tokenizer.bos_token_id, processor.tokenizer.convert_tokens_to_ids("[ENC]")) == (
        tokenizer.dec,
        tokenizer.enc,
    )


def run_card(folder: Path, lines: str = "") -> list[str]:
    """Runs the lines of a model card beside a photo, and returns what they print."""
    Image.effect_mandelbrot((40, 30), (-2, -1, 1, 1), 50).convert("RGB").resize((16, 16)).save(
        folder / "photo.jpg", quality=95
    )
    [code] = re.findall(r"```python\n(.*?)```", (folder / "README.md").read_text(), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code + lines], cwd=folder, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr
    return done.stdout.split("\n")


@pytest.mark.parametrize("kind", ["retrieval", "pretraining"])
def test_the_cards_lines_match_as_we_do(kind: str, tmp_path: Path):
    source = folder(TASKS[kind], tmp_path / "model")
    out = export(source, tmp_path / "out", "hf")[-1]
    p_match, similarity = map(float, run_card(out)[0].split())
    task = load_task(source)
    assert isinstance(task.model, MED)
    image = normalise(eval_transform(16)(Image.open(out / "photo.jpg").convert("RGB")))[None]
    text = task.tokenizer.encode([clean_caption("A red circle!")], 30)
    with torch.no_grad():
        tokens = task.model.encode_image(image)
        ours = task.model.match(text, task.model.text_encoder.cross_keys_values(tokens)).softmax(1)[0, 1].item()
        of_cls = (
            MED.match(with_enc(task.model, False), text, task.model.text_encoder.cross_keys_values(tokens))
            .softmax(1)[0, 1]
            .item()
        )
        near = (task.model.image_feature(tokens) @ task.model.text_feature(task.model.encode_text(text)).T).item()
    assert p_match == pytest.approx(ours, abs=1e-4)
    assert similarity == pytest.approx(near, abs=1e-4)
    assert abs(of_cls - ours) > 1e-3, "[CLS] in [ENC]'s place would be seen"


def with_enc(model: MED, enc_token: bool) -> MED:
    """Returns p(match) with or without [ENC] before the text."""
    other = MED(model.cfg.model_copy(update={"enc_token": enc_token}), decoder=hasattr(model, "text_decoder")).eval()
    other.load_state_dict(model.state_dict())
    return other


@pytest.mark.parametrize("kind", ["captioning", "pretraining"])
def test_the_cards_lines_write_as_we_do(kind: str, tmp_path: Path):
    source = folder(TASKS[kind], tmp_path / "model")
    out = export(source, tmp_path / "out", "hf")[0]
    [caption, _] = run_card(out)
    task = load_task(source)
    captioner = as_captioner(task.cfg).build_task(task.model, task.tokenizer).eval()
    assert isinstance(captioner, Captioning)
    image = eval_transform(16)(Image.open(out / "photo.jpg").convert("RGB"))[None]
    assert caption == captioner.tokenizer.decode(captioner.generate(image, captioner.cfg.decoding).ids)[0]
    assert len(caption.split()) > 2


def test_the_cards_lines_answer(tmp_path: Path):
    [out] = export(folder(TASKS["vqa"], tmp_path / "model"), tmp_path / "out", "hf")
    tokenizer = Tokenizer.from_folder(tmp_path / "model" / "tokenizer")
    lines = "print(inputs['input_ids'][0].tolist())\n"
    _, ids, _ = run_card(out, lines)
    expected = replace_first(tokenizer.encode([clean_question("What is red?")], 35).ids, tokenizer.enc)
    assert json.loads(ids) == expected[0].tolist()


def test_a_filter_that_was_trained_without_enc_keeps_cls(tmp_path: Path):
    source = folder(TASKS["retrieval"], tmp_path / "model", MODEL.model_copy(update={"enc_token": False}))
    [out] = export(source, tmp_path / "out", "hf")
    assert BlipProcessor.from_pretrained(out).tokenizer.cls_token == "[CLS]"
    assert "begins with [CLS]: the processor" in (out / "README.md").read_text()


def test_nlvr2_has_no_class_of_transformers(tmp_path: Path):
    with pytest.raises(WeightsError, match="no class for NLVRModel"):
        export(folder(TASKS["nlvr"], tmp_path / "model"), tmp_path / "out", "hf")


@pytest.mark.parametrize("kind", ["pretraining", "retrieval"])
def test_what_only_training_needs_goes_out_and_comes_back(kind: str, tmp_path: Path):
    source = folder(TASKS[kind], tmp_path / "model")
    task = load_task(source, TASKS[kind])
    assert isinstance(task, Pretraining | Retrieval)
    alignment = task.alignment
    for parameter in alignment.teacher.parameters():
        parameter.data.normal_()
    alignment.temperature.data.fill_(0.2)
    alignment.queue.enqueue(torch.randn(4, 8), torch.randn(4, 8), torch.tensor([7, 8, 9, 7]))
    save_training_state(alignment, source / SIDE_FILE)
    [official] = export(source, tmp_path / "official", "official")
    hf = export(source, tmp_path / "hf", "hf")[0]
    tensors = read_tensors(official / "model.pth")
    assert ("queue_ptr" in tensors, "ptr_queue" in tensors) == (
        (True, False) if kind == "pretraining" else (False, True)
    )
    cross = "encoder.layer.0.crossattention.self.key.weight"
    assert tensors[f"text_encoder_m.{cross}"].equal(tensors[f"text_encoder.{cross}"]), (
        "the teacher's, which never runs, is the student's"
    )
    for back in (official / "model.pth", hf / SIDE_FILE):
        other = TASKS[kind].build_task(TASKS[kind].build_model(task.model.cfg), task.tokenizer).alignment
        report = load_training_state(other, str(back))
        assert not report.missing
        assert other.temperature.item() == pytest.approx(0.2)
        assert other.queue.pointer.item() == 4
        assert other.queue.image[:4].equal(alignment.queue.image[:4])
        assert other.queue.ids[:4].tolist() == (
            [-100] * 4 if kind == "pretraining" and back.suffix == ".pth" else [7, 8, 9, 7]
        )
        for name, parameter in alignment.teacher.named_parameters():
            assert parameter.equal(other.teacher.get_parameter(name)), name
    model = TASKS[kind].build_model(task.model.cfg)
    report = load_weights(model, str(official / "model.pth"), TASKS[kind].DIFFERENCES)
    assert "temp" in report.unused, "a model alone leaves it"


def test_a_side_file_with_another_queue_is_refused(tmp_path: Path):
    task = load_task(folder(TASKS["retrieval"], tmp_path / "model"), TASKS["retrieval"])
    assert isinstance(task, Retrieval)
    save_training_state(task.alignment, tmp_path / SIDE_FILE)
    longer = RetrievalConfig(alignment=AlignmentConfig(queue=9))
    other = longer.build_task(longer.build_model(task.model.cfg), task.tokenizer).alignment
    with pytest.raises(WeightsError, match=r"queue\.image \(6, 8\) -> \(9, 8\)"):
        load_training_state(other, str(tmp_path / SIDE_FILE))


@pytest.mark.parametrize("format", ["official", "hf"])
def test_a_model_of_dialogs_has_no_form_elsewhere(tmp_path: Path, format: Literal["official", "hf"]):
    cfg = DialogConfig(tokens=32)
    save_model(cfg.build_task(cfg.build_model(config()), tokenizer()), tmp_path / "model")
    with pytest.raises(WeightsError, match=f"was trained for dialog, of which there is no {format} form"):
        export(tmp_path / "model", tmp_path / "out", format)
    assert not (tmp_path / "out").exists()
