"""The public API, on tiny models."""

import ast
import json
import re
import subprocess
import sys
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
import tiny_blip2
import torch
from PIL import Image
from tiny_models import SIZE, TEXTS, both, captioner, config, model_folder, picture, text_filter, tokenizer
from tiny_others import clip
from typer.testing import CliRunner, Result

import blip
from blip.cli import app
from blip.data.images import decode
from blip.data.transforms import eval_transform
from blip.models.nlvr import NLVRModel
from blip.models.vqa import VQAModel
from blip.runs.export import export
from blip.serving import Service
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.tasks.model_folder import save_model
from blip.tasks.nlvr import NLVR, NLVRConfig
from blip.tasks.task import Task
from blip.tasks.vqa import VQA, VQAConfig

WIDE = (3 * SIZE, SIZE)


def answerer() -> VQA:
    torch.manual_seed(3)
    return VQA(VQAConfig(), VQAModel(config()), tokenizer()).eval()


def reader(folder: Path, kind: str) -> Blip2Stage2:
    """Returns a BLIP-2 with tiny frozen models in a folder."""
    torch.manual_seed(3)
    language = tiny_blip2.opt(folder / "opt", positions=128) if kind == "opt" else tiny_blip2.t5(folder / "t5")
    model = tiny_blip2.blip2_config(tiny_blip2.clip(folder / "clip"), language)
    cfg = Blip2Stage2Config(prompt="a photo", decoding=blip.Beam(beams=1, min_length=1, max_length=5))
    return cfg.build_task(cfg.model_from(model), tokenizer()).eval()


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


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_a_blip2_describes_follows_prompts_answers_and_converses(tmp_path: Path, kind: str):
    task = reader(tmp_path, kind)
    model = loaded(task, tmp_path / "model")
    assert model.abilities == ("caption", "instruct", "answer", "converse")
    images = [picture(i) for i in range(3)]
    pixels, greedy = tensors(*images), blip.Beam(beams=1, min_length=1, max_length=5)
    assert model.caption(images, decoding=greedy) == task.instruct(pixels, ["a photo"] * 3, greedy)
    prompts = ["a photo of", "Question: a red circle Answer:", "blue"]
    expected = task.instruct(pixels[:1].expand(3, -1, -1, -1), prompts, greedy)
    assert model.instruct(images[0], prompts, decoding=greedy) == expected
    questions = ["a red circle", "a small blue square"]
    answers = model.answer(images[1], questions)
    assert answers == [model.answer(images[1], question)[0] for question in questions]
    first, second = model.converse(images[1], questions)
    assert first == answers[0]
    form = "Question: {} Answer:" if kind == "opt" else "Question: {} Short answer:"
    dialogue = f"{form.format(questions[0])} {first} {form.format(questions[1])}"
    paper = Blip2VQAConfig().decoding
    assert second == model.instruct(images[1], dialogue, decoding=paper)[0]
    served = Service(model).predict([{"image": images[1]}, {"image": images[1], "text": questions[0]}])
    assert served == [{"caption": model.caption(images[1])[0]}, {"answer": answers[0]}]
    with pytest.raises(blip.UnsupportedError, match="whose language model writes its answers; leave out answers"):
        model.answer(images[1], "a red circle", answers=["red"])
    with pytest.raises(blip.UnsupportedError, match="match needs a model of retrieval or pretraining"):
        model.match(images[1], "a red circle")


def test_the_command_line_asks_in_each_of_these_ways(tmp_path: Path):
    model = loaded(reader(tmp_path, "opt"), tmp_path / "model")
    image = tmp_path / "a.png"
    image.write_bytes(picture(1))
    questions = ["a red circle", "blue"]
    for options, answers in (
        ([], model.answer(image, questions)),
        (["--dialogue"], model.converse(image, questions)),
        (["--instruct"], model.instruct(image, questions)),
    ):
        said = ask(str(image), *questions, "--model", str(tmp_path / "model"), "--json", *options)
        assert [row["answer"] for row in json.loads(said.stdout)["rows"]] == answers
    save_model(captioner(), tmp_path / "captioner")
    said = ask(str(image), "blue", "--model", str(tmp_path / "captioner"))
    assert isinstance(said.exception, SystemExit)
    assert "answer needs a model of vqa" in said.output


def ask(*words: str) -> Result:
    return CliRunner().invoke(app, ["ask", *words])


def test_a_prompt_longer_than_a_language_model_reads_is_an_error(tmp_path: Path):
    model = loaded(reader(tmp_path, "opt"), tmp_path / "model")
    with pytest.raises(
        blip.ConfigError, match=r"the prompt with decoding\.max_length is 206 tokens, which after 4 queries"
    ):
        model.instruct(picture(0), "red " * 199 + "red", decoding=blip.Beam(max_length=5))
    with pytest.raises(blip.ConfigError, match=r"a dialogue of 6 questions takes \d+ tokens"):
        model.converse(picture(0), ["a red circle and a blue square"] * 20)


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
    pixels = torch.from_numpy(np.array(Image.open(BytesIO(picture(1, WIDE))).convert("RGB"))).permute(2, 0, 1)
    same = model.embed_images([pixels, pixels / 255, picture(1, WIDE)])
    assert torch.equal(same, same[:1].expand(3, -1))
    with pytest.raises(ValueError, match=r"an image's tensor must be \(3, H, W\), is \(1, 4, 4\)"):
        model.embed_images(torch.zeros(1, 4, 4))
    with pytest.raises(TypeError, match="an image must be a path, bytes, a Pillow image or a tensor, is int"):
        model.embed_images(7)  # pyright: ignore[reportArgumentType]


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
            ("match", "embed", "embed_images", "embed_texts"),
            lambda m: m.caption("a.png"),
            "caption needs a model of captioning or pretraining",
        ),
        (
            both,
            ("caption", "match", "embed", "embed_images", "embed_texts"),
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
        blip.ConfigError,
        match=r"^model '.*nowhere': no such file or folder, nor a hub name such as Salesforce/blip-vqa-base$",
    ):
        blip.load(tmp_path / "nowhere")
    with pytest.raises(blip.ConfigError, match=r"is no model folder, looked for config\.json"):
        blip.load(tmp_path)
    save_model(NLVR(NLVRConfig(), NLVRModel(config()), tokenizer()), tmp_path)
    with pytest.raises(
        blip.ConfigError, match=r"^model '.*' was trained for nlvr; load\(\) takes models of captioning"
    ):
        blip.load(tmp_path)
    with pytest.raises(blip.ConfigError, match=r"^batch_size is 0, must be a whole number, 1 or more$"):
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


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (torch.rand(3, 8, 8) * 255, r"floats must be from 0 to 1, is from .* to 2\d\d.*; give uint8 for 0 to 255"),
        (torch.randn(3, 8, 8), "floats must be from 0 to 1, is from -"),
        (torch.full((3, 8, 8), torch.nan), "floats must be from 0 to 1, is from nan"),
        (torch.zeros(3, 8, 8, dtype=torch.int64), "must be uint8, or float from 0 to 1, is torch.int64"),
        (torch.zeros(3, 0, 8), r"must have pixels, is \(3, 0, 8\)"),
        ("https://example.com/a.jpg", "is a web address, which is not fetched"),
        ("s3://bucket/a.jpg", "s3://bucket/a.jpg: lies in a store, which is not fetched; give its bytes"),
        ("", "path is empty"),
        (Image.new("RGB", (0, 4)), "image of Image: has no pixels, is 0 x 4"),
    ],
)
def test_pixels_that_would_be_misread_are_refused(pixels: blip.ImageLike, message: str, tmp_path: Path):
    with pytest.raises(ValueError, match=message):
        loaded(captioner(), tmp_path / "model").caption(pixels)


def test_several_values_may_come_in_any_form(tmp_path: Path):
    model, matcher = loaded(captioner(), tmp_path / "model"), loaded(text_filter(), tmp_path / "filter")
    pixels = torch.rand(2, 3, 16, 16)
    assert model.caption(pixels) == model.caption(iter(pixels)) == model.caption([*pixels])
    assert model.caption(bytearray(picture(0))) == model.caption(picture(0))
    assert matcher.match(picture(0), iter(TEXTS[:2])) == matcher.match(picture(0), TEXTS[:2])  # pyright: ignore


def test_what_holds_no_images_or_texts_in_order_is_refused_with_what_to_give(tmp_path: Path):
    model = loaded(captioner(), tmp_path / "model")
    for images, words in (
        (BytesIO(picture(0)), "is BytesIO; give what its read"),
        (memoryview(picture(0)), "is memoryview; give bytes"),
        (np.zeros((8, 8, 3), np.uint8), r"is ndarray; give PIL\.Image\.fromarray"),
        (np.array(["a.png"]), "is ndarray; give a list of it"),
        ({"a.png"}, "is set; give a list"),
    ):
        with pytest.raises(TypeError, match=words):
            model.caption(images)  # pyright: ignore[reportArgumentType]
    matcher = loaded(text_filter(), tmp_path / "filter")
    for texts, words in (
        ({"a", "b"}, "must have an order, is set"),
        (b"ab", "must be a string, is bytes"),
        ("\ud800", "lone surrogate"),
    ):
        with pytest.raises((TypeError, ValueError), match=words):
            matcher.match(picture(0), texts)  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size is 0"),
        ({"batch_size": 2.5}, "batch_size is 2.5, must be a whole number"),
        ({"dtype": ["float32"]}, "dtype is"),
        ({"device": "nonsense"}, "device is 'nonsense', which cannot be used"),
    ],
)
def test_options_of_loading_are_checked(options: dict, message: str, tmp_path: Path):
    with pytest.raises(blip.ConfigError, match=message):
        blip.load(model_folder(captioner(), tmp_path / "model"), **options)


def test_a_decoding_that_does_not_fit_is_named(tmp_path: Path):
    model = loaded(captioner(), tmp_path / "model")
    with pytest.raises(TypeError, match=r"decoding must be blip\.Beam\(\.\.\.\) or .*, is 'beam'"):
        model.caption(picture(0), decoding="beam")  # pyright: ignore[reportArgumentType]
    with pytest.raises(blip.ConfigError, match="positions"):
        model.caption(picture(0), decoding=blip.Beam(max_length=1000))


@pytest.mark.parametrize(
    ("pairs", "options", "error"),
    [
        ([(picture(0), "a")], {"batch_size": 0}, "batch_size is 0"),
        ([(picture(0), "a")], {"captions": 2, "decoding": blip.Beam()}, "beam search has one best text"),
        ([picture(0)], {}, "a pair must be an image and its text"),
        ([(picture(0), None)], {}, "a pair must be an image and its text"),
    ],
)
def test_capfilt_of_pairs_checks_what_it_is_given(pairs: list, options: dict, error: str, tmp_path: Path):
    models = loaded(captioner(), tmp_path / "model"), loaded(text_filter(), tmp_path / "filter")
    with pytest.raises((ValueError, TypeError), match=error):
        blip.capfilt(pairs, *models, **options)
    with pytest.raises(TypeError, match=r"filter must be a model's source, .*, is None"):
        blip.capfilt([], models[0], None)  # pyright: ignore[reportArgumentType]


def test_the_readme_tells_the_truth(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    readme = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    monkeypatch.chdir(tmp_path)
    for name in re.findall(r"\w+\.jpg", code):
        Path(name).write_bytes(picture(0, WIDE, format="JPEG"))
    for name, task in {"captioner": captioner(), "filter": text_filter(), "runs/latest/model": both()}.items():
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


def test_images_and_texts_are_embedded_in_one_call(tmp_path: Path):
    model = loaded(both(), tmp_path)
    images = [picture(0), picture(1)]
    found = model.embed(images=images, texts=TEXTS[:3])
    assert torch.equal(found.images, model.embed_images(images))
    assert torch.equal(found.texts, model.embed_texts(TEXTS[:3]))
    assert model.embed(texts=TEXTS[0]).images.shape == (0, config().embed)


def test_half_precision_says_nearly_the_same(tmp_path: Path):
    whole = loaded(both(), tmp_path)
    half = blip.load(tmp_path, device="cpu", dtype="bfloat16")
    one, other = (model.match(picture(0), TEXTS[:2]) for model in (whole, half))
    assert one != other
    assert [m.probability for m in other] == pytest.approx([m.probability for m in one], abs=0.05)
    assert blip.load(tmp_path, device="cpu", dtype=torch.bfloat16).dtype == "bfloat16"
    with pytest.raises(blip.ConfigError, match=r"^dtype is float16, must be float32 or bfloat16$"):
        blip.load(tmp_path, dtype="float16")  # pyright: ignore[reportArgumentType]


def test_a_folder_of_transformers_loads(tmp_path: Path):
    (folder,) = export(model_folder(captioner(), tmp_path / "ours"), tmp_path / "hf", "hf")
    images = [picture(i) for i in range(3)]
    decoding = blip.Beam(beams=1, max_length=12)
    ours = blip.load(tmp_path / "ours", device="cpu")
    assert len(blip.load(str(folder), device="cpu").caption(images, decoding=decoding)) == 3
    assert ours.caption(images, decoding=decoding)


def test_capfilt_of_pairs_in_memory_keeps_what_matches(tmp_path: Path):
    model = loaded(both(), tmp_path / "model")
    pairs = [(picture(i), TEXTS[i]) for i in range(5)]
    found = blip.capfilt(pairs, model, model, batch_size=2, captions=2, decoding=blip.Nucleus(max_length=8))
    assert [[text.source for text in of_pair] for of_pair in found] == [["web", "synthetic", "synthetic"]] * 5
    assert [of_pair[0].text for of_pair in found] == TEXTS[:5]
    matches = model.match([image for image, _ in pairs], TEXTS[:5])
    assert [of_pair[0].match for of_pair in found] == pytest.approx([m.probability for m in matches], abs=1e-5)
    texts = [text for of_pair in found for text in of_pair]
    assert all(text.kept == (text.match >= 0.5 and bool(text.text.strip())) for text in texts)
    assert all((text.log_probability is None) == (text.source == "web") for text in texts)
    by_folder = blip.capfilt(
        pairs, str(tmp_path / "model"), tmp_path / "model", captions=2, decoding=blip.Nucleus(max_length=8)
    )
    assert [[text.text for text in of_pair] for of_pair in by_folder] == [
        [t.text for t in of_pair] for of_pair in found
    ]
    judged = blip.capfilt(pairs, model, clip(tmp_path / "clip"), by="similarity", threshold=-1.0)
    assert all(text.match is None and text.kept == bool(text.text.strip()) for of_pair in judged for text in of_pair)
    with pytest.raises(ValueError, match="by is 'match', but this filter computes similarity"):
        blip.capfilt(pairs, model, clip(tmp_path / "other-clip"))


def test_importing_is_fast_and_silent():
    code = "import time; began = time.process_time(); import blip; print(time.process_time() - began)"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert float(done.stdout) < 0.3
    assert done.stderr == ""


def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    notebook = json.loads((Path(__file__).parents[1] / "examples" / "blip.ipynb").read_text(encoding="utf-8"))
    monkeypatch.chdir(tmp_path)
    for name, task in {"CAPTIONER": captioner(), "MATCHER": text_filter(), "ANSWERER": answerer()}.items():
        save_model(task, tmp_path / name)
        monkeypatch.setenv(f"BLIP_{name}", str(tmp_path / name))
    scope: dict = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec("".join(cell["source"]), scope)
    assert len(scope["captions"]) == 2
    assert scope["labelled"][0][0].source == "web"
