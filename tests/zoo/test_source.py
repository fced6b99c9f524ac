"""Models of any source are one model folder: what others wrote is converted, and says the same."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from fake_hub import fake_hub, use_hub
from tiny_models import TEXTS, both, captioner, config, model_folder, picture, samples, text_filter, tokenizer
from tiny_others import clip, llava
from transformers import BlipForConditionalGeneration, BlipForImageTextRetrieval, BlipProcessor

from blip.capfilt.in_memory import capfilt
from blip.config import ConfigError
from blip.data.images import decode
from blip.data.transforms import eval_transform
from blip.models.generation import Beam
from blip.models.vqa import VQAModel
from blip.models.weights.export import official_tensors
from blip.models.weights.files import read_tensors, write_tensors
from blip.runs.context import RunContext
from blip.runs.evaluate import evaluate
from blip.runs.export import export
from blip.runs.import_model import import_model
from blip.runs.label import match
from blip.shards.writing import write_shards
from blip.storage import open_store
from blip.tasks.captioning import Captioning
from blip.tasks.model_folder import load_task, read_model_config, save_model
from blip.tasks.pretraining import Pretraining
from blip.tasks.retrieval import Retrieval
from blip.tasks.task import Task
from blip.tasks.vqa import VQA, VQAConfig
from blip.tracking import start_run
from blip.tracking.registry import promote, register_model
from blip.tracking.server import TrackingError
from blip.zoo.sniff import SniffedCheckpoint
from blip.zoo.source import model_folder as folder_of
from blip.zoo.source import our_model

HEADS = ("model.vision.heads=2",)
PIXELS = torch.stack([eval_transform(16)(decode(picture(i))) for i in range(3)])


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache of the test's own, and no network."""
    use_hub(tmp_path / "home", "http://127.0.0.1:9", monkeypatch, offline=True)
    return tmp_path / "home"


def official(task: Task, folder: Path) -> Path:
    """A checkpoint of the reference with its `med_config.json` and vocabulary beside it."""
    export(model_folder(task, folder / "ours"), folder / "official", "official")
    return folder / "official" / "model.pth"


def answerer() -> VQA:
    torch.manual_seed(3)
    return VQA(VQAConfig(), VQAModel(config()), tokenizer()).eval()


def equal(one: Task, other: Task) -> bool:
    first, second = one.model.state_dict(), other.model.state_dict()
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


@pytest.mark.parametrize("make", [both, captioner, text_filter, answerer])
def test_an_official_checkpoint_becomes_the_same_model(make, tmp_path: Path):
    task = make()
    folder = folder_of(official(task, tmp_path), overrides=HEADS)
    found = load_task(folder)
    assert type(found) is type(task)
    assert equal(found, task)
    assert (found.model.cfg.share, found.model.cfg.tokens) == (task.model.cfg.share, task.model.cfg.tokens)
    assert found.tokenizer.backend.get_vocab() == task.tokenizer.backend.get_vocab()
    assert {path.name for path in folder.iterdir()} == {"config.json", "model.safetensors", "tokenizer"}


def test_it_is_converted_once(tmp_path: Path):
    path = official(captioner(), tmp_path)
    first = folder_of(path, overrides=HEADS)
    stamp = (first / "model.safetensors").stat().st_mtime_ns
    assert folder_of(path, overrides=HEADS) == first
    assert (first / "model.safetensors").stat().st_mtime_ns == stamp
    assert folder_of(path, overrides=(*HEADS, "task.prompt=''")) != first


@pytest.mark.parametrize("share", ["all", "all_but_cross_attention", "all_but_self_attention", "none"])
def test_what_encoder_and_decoder_share_is_seen(share: str, tmp_path: Path):
    cfg = config().model_copy(update={"share": share})
    task = both()
    write_tensors(official_tensors(task.cfg.build_model(cfg)), tmp_path / "model.pth")
    assert SniffedCheckpoint(read_tensors(tmp_path / "model.pth"), tmp_path).share == share


def test_what_the_files_do_not_tell_is_asked_for(tmp_path: Path):
    path = official(captioner(), tmp_path)
    with pytest.raises(
        ConfigError,
        match=r"attention heads of its vision part stands in no file; say it by `blip import --set model\.v",
    ):
        folder_of(path)
    (path.parent / "vocab.txt").unlink()
    (path.parent / "tokenizer.json").unlink()
    with pytest.raises(ConfigError, match="word pieces have no tokenizer beside it; name one by `blip import"):
        folder_of(path, overrides=HEADS)
    other = tmp_path / "vocab.txt"
    other.write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a"]))
    with pytest.raises(ConfigError, match=r"has embeddings of \d+ word pieces, its tokenizer .* has 8 with"):
        folder_of(path, tokenizer=str(other), overrides=HEADS)
    assert equal(load_task(folder_of(path, str(tmp_path / "ours" / "tokenizer"), HEADS)), captioner())


def test_further_tensors_are_left_out_where_that_is_said(tmp_path: Path):
    path = official(captioner(), tmp_path)
    write_tensors(read_tensors(path) | {"aesthetic.weight": torch.zeros(2)}, path)
    with pytest.raises(ConfigError, match=r"not in the model: aesthetic\.weight.*`blip import --set allow_unused"):
        folder_of(path, overrides=HEADS)
    assert equal(load_task(folder_of(path, overrides=(*HEADS, "allow_unused=[aesthetic.*]"))), captioner())


def test_wide_models_have_heads_of_the_usual_width():
    tensors = {"visual_encoder.patch_embed.proj.weight": torch.zeros(768, 3, 16, 16)}
    tensors |= {"visual_encoder.pos_embed": torch.zeros(1, 577, 768)}
    tensors |= {f"visual_encoder.blocks.{i}.norm1.weight": torch.zeros(768) for i in range(12)}
    text = "text_decoder.bert"
    tensors |= {f"{text}.embeddings.word_embeddings.weight": torch.zeros(30524, 768)}
    tensors |= {f"{text}.embeddings.position_embeddings.weight": torch.zeros(512, 768)}
    tensors |= {f"{text}.encoder.layer.{i}.intermediate.dense.weight": torch.zeros(3072, 1) for i in range(12)}
    found = SniffedCheckpoint({f"module.{name}": tensor for name, tensor in tensors.items()}, Path("model.pth")).sizes(
        {}
    )
    assert found["vision"] == {"size": 384, "patch": 16, "width": 768, "depth": 12, "heads": 12}
    assert found["text"]["heads"] == found["text"]["depth"] == 12


def test_transformers_captioner_writes_the_same_captions(tmp_path: Path):
    (source,) = export(model_folder(captioner(), tmp_path / "ours"), tmp_path / "hf", "hf")
    task = load_task(folder_of(source, overrides=("task.prompt=''",)))
    assert isinstance(task, Captioning)
    theirs, processor = BlipForConditionalGeneration.from_pretrained(source), BlipProcessor.from_pretrained(source)
    pixels = processor(images=[decode(picture(i)) for i in range(3)], return_tensors="pt")["pixel_values"]
    ids = theirs.generate(pixel_values=pixels, num_beams=1, do_sample=False, max_length=12, min_length=1)
    ours = task.generate(PIXELS, Beam(beams=1, max_length=12, min_length=1))
    assert task.tokenizer.decode(ours.ids) == processor.batch_decode(ids, skip_special_tokens=True)


def test_transformers_matcher_gives_the_same_scores(tmp_path: Path):
    (source,) = export(model_folder(text_filter(), tmp_path / "ours"), tmp_path / "hf", "hf")
    theirs, processor = BlipForImageTextRetrieval.from_pretrained(source), BlipProcessor.from_pretrained(source)

    def scores() -> tuple[list[float], list[float]]:
        task = load_task(folder_of(source))
        assert isinstance(task, Retrieval)
        match, _ = task.match(PIXELS, TEXTS[:3])
        inputs = BlipProcessor.from_pretrained(source)(
            images=[decode(picture(i)) for i in range(3)], text=TEXTS[:3], padding=True, return_tensors="pt"
        )
        return match.tolist(), theirs(**inputs).itm_score.softmax(1)[:, 1].tolist()

    ours, expected = scores()
    assert ours == pytest.approx(expected, abs=1e-5)
    # a released folder begins its texts with [CLS], and so do we
    settings = json.loads((source / "tokenizer_config.json").read_text())
    (source / "tokenizer_config.json").write_text(json.dumps({**settings, "cls_token": "[CLS]"}))
    tokens = json.loads((source / "tokenizer.json").read_text())
    first = tokens["post_processor"]["special_tokens"].pop("[ENC]", None)
    assert processor
    if first:
        shutil.copytree(tmp_path / "ours" / "tokenizer", source, dirs_exist_ok=True)
    again, theirs_again = scores()
    assert again == pytest.approx(theirs_again, abs=1e-5)
    assert again != pytest.approx(ours, abs=1e-5)


def test_a_class_that_is_none_of_the_three_is_refused(tmp_path: Path):
    (source,) = export(model_folder(captioner(), tmp_path / "ours"), tmp_path / "hf", "hf")
    settings = json.loads((source / "config.json").read_text())
    (source / "config.json").write_text(json.dumps({**settings, "architectures": ["BlipModel"]}))
    with pytest.raises(ConfigError, match="its class is BlipModel; known are BlipForConditionalGeneration"):
        folder_of(source)


def test_a_folder_and_a_checkpoint_come_from_a_store(tmp_path: Path, s3: str):
    path = official(both(), tmp_path)
    store = open_store(f"{s3}/models")
    for folder in ("ours", "official"):
        for file in (tmp_path / folder).rglob("*"):
            if file.is_file():
                store.put_file(file.relative_to(tmp_path).as_posix(), file)
    assert equal(load_task(folder_of(f"{s3}/models/ours")), both())
    assert equal(load_task(folder_of(f"{s3}/models/official/{path.name}", overrides=HEADS)), both())
    with pytest.raises(ConfigError, match=r"none\.pth does not exist; copy it there"):
        folder_of(f"{s3}/models/none.pth")
    with pytest.raises(ConfigError, match="nothing lies there"):
        folder_of(f"{s3}/nothing")


def test_a_name_on_the_hub_is_fetched_with_all_that_it_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with fake_hub(tmp_path / "hub-home", monkeypatch) as server:
        server.models["tiny/llava"] = {p.name: p.read_bytes() for p in llava(tmp_path / "llava").iterdir()}
        found = folder_of("tiny/llava")
    assert {path.name for path in found.iterdir()} == {path.name for path in (tmp_path / "llava").iterdir()}
    assert folder_of("tiny/llava") == found  # from the cache, now that the hub is gone
    with pytest.raises(ConfigError, match="model 'tiny/none'"):
        folder_of("tiny/none")


def test_a_model_folder_of_ours_lies_on_the_hub_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    made = Path(model_folder(captioner(), tmp_path / "ours"))
    files = {path.relative_to(made).as_posix(): path.read_bytes() for path in made.rglob("*") if path.is_file()}
    data = tmp_path / "data"
    write_shards(samples(2), tmp_path / "shards", "test", 2).save(data / "test.json")
    with fake_hub(tmp_path / "hub-home", monkeypatch) as server:
        server.models["someone/captioner"] = files
        assert equal(load_task(folder_of("someone/captioner")), captioner())
        for verb in (
            lambda: evaluate(RunContext(preset="shapes"), data=data, model="someone/captioner", out=tmp_path / "e"),
            lambda: match([str(tmp_path)], ["a"], model="someone/captioner", out=tmp_path / "m.csv"),
            lambda: capfilt([], "someone/captioner", "someone/captioner"),
        ):
            (tmp_path / "one.png").write_bytes(picture(0))
            with pytest.raises(ConfigError, match=r"someone/captioner[ :]") as said:
                verb()
            assert "hub-home" not in str(said.value)  # nobody knows the copy of this machine
        server.models["someone/half"] = {name: data for name, data in files.items() if "/" not in name}
        with pytest.raises(ConfigError, match="lacks tokenizer/, which a model folder of ours has"):
            folder_of("someone/half")


def test_a_model_of_mlflow_comes_by_alias_version_and_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.delenv("BLIP_TRACKING", raising=False)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path}/mlflow.db")
    folder = model_folder(both(), tmp_path / "ours")
    with start_run("register") as run:
        version = register_model(run, folder, "tiny", {"score": 1.0})
        identity = run.id
    promote("tiny", version)
    for source in ("models:/tiny@champion", f"models:/tiny/{version}", f"runs:/{identity}", identity):
        assert equal(load_task(folder_of(source)), both()), source
    for source in ("models:/tiny@loser", "models:/nobody/1"):
        with pytest.raises(TrackingError, match=f"model {source}"):
            folder_of(source)


def test_only_blip_goes_where_only_blip_can(tmp_path: Path):
    with pytest.raises(ConfigError, match="evaluation takes models of BLIP, this one is of another kind"):
        our_model(clip(tmp_path / "clip"), "evaluation")
    with pytest.raises(ConfigError, match=r"model 'no/such/place': no such file or folder"):
        folder_of("no/such/place")
    with pytest.raises(ConfigError, match=r"model 'here\.pth': no such file"):
        folder_of("here.pth")
    with pytest.raises(ConfigError, match="name a folder, a file, a store's URI"):
        folder_of(" ")


def test_import_writes_a_folder_and_says_what_it_is(tmp_path: Path):
    line = import_model(str(official(both(), tmp_path)), tmp_path / "out", overrides=HEADS)
    assert line.startswith(f"{tmp_path}/out: pretraining, 16 pixels, ViT 1 x 16, text 1 x 16, ")
    assert isinstance(load_task(tmp_path / "out"), Pretraining)
    assert read_model_config(tmp_path / "out").model.tokens == config().tokens
    with pytest.raises(ConfigError, match="exists already; name a folder that is empty or new"):
        import_model(str(tmp_path / "out"), tmp_path / "out")
    with pytest.raises(ConfigError, match="is no BLIP, so it stays as it is"):
        import_model(str(clip(tmp_path / "clip")), tmp_path / "clip-out")
    save_model(captioner(), tmp_path / "ours-too")
    import_model(str(tmp_path / "ours-too"), tmp_path / "copy")
    for wish in ({"tokenizer": "vocab.txt"}, {"overrides": HEADS}):
        with pytest.raises(ConfigError, match="its files tell all; leave out tokenizer and settings"):
            import_model(str(tmp_path / "ours-too"), tmp_path / "another", **wish)
