"""The public API, on tiny models."""

import ast
import re
from io import BytesIO
from pathlib import Path

import pytest
import torch
from PIL import Image
from tiny_models import SIZE, TEXTS, both, captioner, config, model_folder, picture, text_filter, tokenizer

import blip
from blip.data.images import decode
from blip.data.transforms import eval_transform
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.tasks.model_folder import save_model
from blip.tasks.nlvr import NLVR, NLVRConfig
from blip.tasks.task import Task
from blip.tasks.vqa import VQA, VQAConfig

WIDE = (3 * SIZE, SIZE)


def answerer() -> VQA:
    torch.manual_seed(3)
    return VQA(VQAConfig(), VQAModel(config()), tokenizer()).eval()


def loaded(task: Task, path: Path, **options) -> blip.Model:
    save_model(task, path)
    return blip.load(path, device="cpu", **options)


def tensors(*encoded: bytes) -> torch.Tensor:
    return torch.stack([eval_transform(SIZE)(decode(data)) for data in encoded])


def test_captions_are_those_of_the_task(tmp_path: Path):
    task = captioner()
    images = [picture(i, WIDE) for i in range(5)]
    expected = task.tokenizer.decode(task.generate(tensors(*images), task.cfg.decoding).ids)
    model = loaded(task, tmp_path)
    assert model.caption(images) == expected
    assert loaded(task, tmp_path, batch_size=2).caption(images) == expected


def test_another_decoding_is_taken_and_draws_from_the_seed(tmp_path: Path):
    model = loaded(captioner(), tmp_path)
    drawn = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        drawn.append(model.caption([picture(0)] * 4, decoding=blip.Nucleus(top_p=1.0, max_length=12)))
    assert drawn[0] == drawn[1] != drawn[2]
    assert len(model.caption(picture(0), decoding=blip.Beam(beams=1, max_length=6))) == 1


def test_an_image_is_a_path_bytes_or_an_image_of_pillow(tmp_path: Path):
    model = loaded(both(), tmp_path / "model")
    file = BytesIO()
    turned = Image.open(BytesIO(picture(1, WIDE))).convert("RGBA")
    turned.putalpha(Image.linear_gradient("L").resize(WIDE))
    exif = Image.Exif()
    exif[0x0112] = 6
    turned.save(file, "PNG", exif=exif)
    path = tmp_path / "image.png"
    path.write_bytes(file.getvalue())
    vectors = model.embed_images([path, str(path), file.getvalue(), Image.open(path)])
    assert torch.equal(vectors, vectors[:1].expand(4, -1))
    assert not torch.allclose(vectors[:1], model.embed_images(picture(1, WIDE)))
    with pytest.raises(TypeError, match="an image must be a path, bytes or a Pillow image, is Tensor"):
        model.embed_images(torch.zeros(3, 4, 4))  # pyright: ignore[reportArgumentType]


def test_matches_are_those_of_the_task(tmp_path: Path):
    task = text_filter()
    images = [picture(i) for i in range(4)]
    probability, similarity = task.match(tensors(*images), TEXTS[:4])
    model = loaded(task, tmp_path, batch_size=3)
    found = model.match(images, TEXTS[:4])
    assert [match.probability for match in found] == pytest.approx(probability.tolist(), abs=1e-6)
    assert [match.similarity for match in found] == pytest.approx(similarity.tolist(), abs=1e-6)


def test_one_image_meets_every_text_and_one_text_every_image(tmp_path: Path):
    model = loaded(text_filter(), tmp_path, batch_size=3)
    images, texts = [picture(i) for i in range(4)], TEXTS[:4]
    flat = pytest.approx
    many_texts = model.match(images[0], texts)
    many_images = model.match(images, texts[0])
    assert [*map(list, many_texts)] == [flat(list(match), abs=1e-6) for match in model.match([images[0]] * 4, texts)]
    assert [*map(list, many_images)] == [flat(list(match), abs=1e-6) for match in model.match(images, [texts[0]] * 4)]
    with pytest.raises(ValueError, match=r"^4 images and 3 texts: give as many of both, or one of either$"):
        model.match(images, texts[:3])
    assert model.match([], []) == []


def test_the_dot_product_of_embeddings_is_the_similarity(tmp_path: Path):
    model = loaded(both(), tmp_path, batch_size=2)
    images = [picture(i) for i in range(3)]
    vectors, text_vectors = model.embed_images(images), model.embed_texts(TEXTS[:3])
    assert vectors.shape == text_vectors.shape == (3, config().embed)
    assert vectors.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-5)
    similarity = [match.similarity for match in model.match(images, TEXTS[:3])]
    assert (vectors * text_vectors).sum(1).tolist() == pytest.approx(similarity, abs=1e-5)
    assert model.embed_images([]).shape == (0, config().embed)


def test_answers_are_those_of_the_task(tmp_path: Path):
    task = answerer()
    images, questions = [picture(i) for i in range(3)], ["What is this?", "Which colour?", "Is it large?"]
    model = loaded(task, tmp_path)
    cleaned = task.tokenizer.encode(["what is this?", "which colour?", "is it large?"], task.cfg.question.tokens)
    assert model.answer(images, questions) == task.generate(tensors(*images), cleaned)
    assert len(model.answer(images[0], questions)) == 3


def test_answers_are_taken_from_a_list(tmp_path: Path):
    task = answerer()
    model = loaded(task, tmp_path, batch_size=2)
    images, choices = [picture(i) for i in range(3)], ["red", "blue", "a large circle"]
    question = task.tokenizer.encode(["which colour?"] * 3, task.cfg.question.tokens)
    best = task.rank(tensors(*images), question, task.encode_answers(choices))
    assert model.answer(images, "Which colour?", choices) == [choices[i] for i in best.tolist()]
    with pytest.raises(ValueError, match="answers is empty"):
        model.answer(images, "Which colour?", [])


def test_a_list_of_answers_that_is_gone_does_not_keep_a_model_from_loading(tmp_path: Path):
    answers = tmp_path / "answers.json"
    answers.write_text('["red", "blue"]', encoding="utf-8")
    task = VQA(VQAConfig(inference="rank", answer_list=answers), VQAModel(config()), tokenizer()).eval()
    save_model(task, tmp_path / "model")
    answers.unlink()
    assert blip.load(tmp_path / "model", device="cpu").abilities == ("answer",)


@pytest.mark.parametrize(
    ("task", "abilities", "call", "message"),
    [
        (
            captioner,
            ("caption",),
            lambda m: m.match("a.png", "a"),
            "captioning and can do: caption; match needs a model of retrieval or pretraining",
        ),
        (
            text_filter,
            ("match", "embed_images", "embed_texts"),
            lambda m: m.caption("a.png"),
            "caption needs a model of captioning or pretraining",
        ),
        (
            both,
            ("caption", "match", "embed_images", "embed_texts"),
            lambda m: m.answer("a.png", "a"),
            "answer needs a model of vqa",
        ),
        (
            answerer,
            ("answer",),
            lambda m: m.embed_texts("a"),
            "vqa and can do: answer; embed_texts needs a model of retrieval",
        ),
    ],
)
def test_a_model_says_what_it_can_do(task, abilities, call, message, tmp_path: Path):
    model = loaded(task(), tmp_path)
    assert model.abilities == abilities
    with pytest.raises(blip.UnsupportedError, match=re.escape(message)) as error:
        call(model)
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_captioner_holds_no_copy_of_itself(tmp_path: Path):
    model = loaded(both(), tmp_path)
    parts = {id(p) for task in model.tasks.values() for p in task.parameters()}
    assert parts == {id(p) for p in next(iter(model.tasks.values())).model.parameters()}


def test_what_cannot_be_loaded_is_one_line(tmp_path: Path):
    with pytest.raises(
        blip.ConfigError, match=r"^model '.*nowhere': no such folder; name a model folder that `blip train` wrote$"
    ):
        blip.load(tmp_path / "nowhere")
    with pytest.raises(blip.ConfigError, match=r"config\.json: no such file$"):
        blip.load(tmp_path)
    save_model(NLVR(NLVRConfig(), NLVRModel(config()), tokenizer()), tmp_path)
    with pytest.raises(
        blip.ConfigError, match=r"^model '.*' was trained for nlvr; load\(\) takes models of captioning"
    ):
        blip.load(tmp_path)
    with pytest.raises(blip.ConfigError, match=r"^batch_size is 0, must be 1 or more$"):
        blip.load(tmp_path, batch_size=0)


def test_a_broken_image_and_a_missing_one_are_named(tmp_path: Path):
    model = loaded(captioner(), tmp_path / "model")
    path = tmp_path / "cut.png"
    path.write_bytes(picture(0)[:100])
    with pytest.raises(ValueError, match=r"^image .*cut\.png: image is cut short$"):
        model.caption(path)
    with pytest.raises(ValueError, match=r"^image .*cut\.png: image is cut short$"):
        model.caption(Image.open(path))
    with pytest.raises(ValueError, match=r"^image of bytes: image cannot be decoded$"):
        model.caption(b"nothing")
    with pytest.raises(FileNotFoundError, match=r"gone\.png"):
        model.caption(tmp_path / "gone.png")
    with pytest.raises(TypeError, match="a text must be a string, is NoneType"):
        loaded(text_filter(), tmp_path / "filter").match(picture(0), [None])  # pyright: ignore[reportArgumentType]


def test_the_readme_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"\w+\.jpg", code):
        Path(name).write_bytes(picture(0, WIDE, format="JPEG"))
    for name, task in (("captioner", captioner()), ("filter", text_filter())):
        model_folder(task, tmp_path / name)
    exec(code, {})
    captions, matches = capsys.readouterr().out.splitlines()
    assert len(ast.literal_eval(captions)) == 2
    assert matches.count("Match(probability=0.") == 2


def test_the_package_is_typed_and_says_what_it_offers():
    assert (Path(blip.__file__).parent / "py.typed").is_file()
    assert {*blip.__all__} <= {*dir(blip)}
    assert all(getattr(blip, name) is not None for name in blip.__all__)
    with pytest.raises(AttributeError, match="module 'blip' has no attribute 'laod'"):
        blip.laod  # noqa: B018  # pyright: ignore[reportAttributeAccessIssue]
