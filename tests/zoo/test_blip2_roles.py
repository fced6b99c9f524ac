"""BLIP-2 as captioner and as filter of CapFilt."""

from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_blip2 import blip2_config, clip, opt, t5
from tiny_models import TEXTS, picture, tokenizer

from blip.batch import Tokens
from blip.config import ConfigError, load_config
from blip.data.images import decode
from blip.models.generation import Beam, Decoding, Nucleus
from blip.runs.stages import config_classes
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.model_folder import save_model
from blip.tasks.text import TextLengths
from blip.zoo.blip2 import Blip2Captioner, Blip2Filter
from blip.zoo.config import DualEncoderConfig, VisionLanguageConfig
from blip.zoo.contract import Captioner, ImageBatch
from blip.zoo.load import load_captioner, load_filter

NUCLEUS = Nucleus(top_p=0.9, min_length=1, max_length=6)
LENGTHS = TextLengths(tokens=16)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Model folders: a second stage for each kind of language model, and a first stage."""
    root = tmp_path_factory.mktemp("models")
    vision, languages = clip(root / "clip"), {"opt": opt(root / "opt-lm"), "t5": t5(root / "t5-lm")}
    for kind, language in languages.items():
        torch.manual_seed(1)
        second = Blip2Stage2Config(text=LENGTHS, decoding=Beam(beams=2, min_length=1, max_length=6))
        cfg = blip2_config(vision, language).with_digests()
        save_model(second.build_task(second.model_from(cfg), tokenizer()), root / kind)
    torch.manual_seed(2)
    first = Blip2Stage1Config(text=LENGTHS)
    save_model(first.build_task(first.model_from(blip2_config(vision).with_digests()), tokenizer()), root / "first")
    return {name: root / name for name in ("opt", "t5", "first")}


def pictures() -> list[Image.Image]:
    return [decode(picture(i)) for i in range(4)]


def images(model: Captioner | Blip2Filter, some: list[Image.Image]) -> ImageBatch:
    return ImageBatch([{model.view.name: model.view.make(image)} for image in some], batch=4)


def captioner(folder: Path, decoding: Decoding = NUCLEUS, seed: int = 42) -> Captioner:
    return load_captioner(folder, decoding, seed, "float32", VisionLanguageConfig())


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_text_depends_on_its_image_its_key_and_its_number_alone(folders, kind):
    model = captioner(folders[kind])
    assert isinstance(model, Blip2Captioner)
    keys = list("abcd")
    together = model.write(images(model, pictures()), keys, 0)
    assert len(together) == 4
    assert all(written.log_probability < 0 for written in together)
    for row in (0, 3):
        [alone] = model.write(images(model, pictures()[row : row + 1]), keys[row : row + 1], 0)
        assert alone.text == together[row].text
        assert alone.log_probability == pytest.approx(together[row].log_probability, abs=1e-4)
    other = [
        model.write(images(model, pictures()), keys, 1),
        captioner(folders[kind], seed=7).write(images(model, pictures()), keys, 0),
        model.write(images(model, pictures()), list("wxyz"), 0),
    ]
    assert all([w.text for w in texts] != [w.text for w in together] for texts in other)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_beam_search_writes_what_the_task_writes(folders, kind):
    beam = Beam(beams=2, min_length=1, max_length=6)
    model = captioner(folders[kind], beam)
    assert isinstance(model, Blip2Captioner)
    found = [written.text for written in model.write(images(model, pictures()), list("abcd"), 0)]
    pixels = torch.stack([model.view.make(image) for image in pictures()])
    assert found == model.task.model.language_model.decode(model.task.generate(pixels, beam).ids)


def test_the_first_stage_scores_by_the_mean_and_by_the_best_of_its_queries(folders):
    judge = load_filter(folders["first"], "float32", DualEncoderConfig())
    assert isinstance(judge, Blip2Filter)
    assert judge.gives == ("match", "similarity")
    texts = [TEXTS[:2], TEXTS[2:3], [], TEXTS[3:6]]
    found = judge.score(images(judge, pictures()), texts)
    assert [len(row) for row in found] == [2, 1, 0, 3]
    model = judge.task.model
    with torch.inference_mode():
        tokens = model.encode_image(judge.view.make(pictures()[3])[None])
        cross = model.qformer.cross_keys_values(tokens)
        text = tokenizer().encode(TEXTS[3:6], 16)
        one = [(k.expand(3, -1, -1, -1), v.expand(3, -1, -1, -1)) for k, v in cross]
        match = model.match(Tokens(text.ids, text.mask), one).softmax(1)[:, 1]
        image = model.image_feature(model.qformer.encode_image(cross)[0])[0]
        similarity = (model.text_feature(model.qformer.encode_text(text)) @ image.T).amax(1)
    assert [s.match for s in found[3]] == pytest.approx(match.tolist(), abs=1e-5)
    assert [s.similarity for s in found[3]] == pytest.approx(similarity.tolist(), abs=1e-5)


def test_each_stage_has_its_role(folders):
    with pytest.raises(ConfigError, match="blip2_stage1"):
        captioner(folders["first"])
    with pytest.raises(ConfigError, match="blip2_stage2"):
        load_filter(folders["opt"], "float32", DualEncoderConfig())


def test_a_text_that_the_language_model_cannot_read_is_an_error(folders):
    with pytest.raises(ConfigError, match=r"more than the 64 positions"):
        captioner(folders["opt"], Nucleus(min_length=1, max_length=80))


def test_the_preset_makes_the_papers_data():
    classes = config_classes()
    capfilt, select = (load_config(classes[stage], stage, "blip2_capfilt") for stage in ("capfilt", "select"))
    assert capfilt.model_dump()["stream"]["captions"] == 10
    assert select.model_dump()["rule"] == {"type": "best", "keep": 2, "by": "similarity"}
