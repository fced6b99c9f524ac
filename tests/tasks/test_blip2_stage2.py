"""The second stage: what the language model is given and says, its loss, and its generation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from tiny_blip2 import blip2_config, clip, opt, t5
from tiny_models import TEXTS, picture, tokenizer

from blip.batch import Example
from blip.config import ConfigError
from blip.models.generation import Beam, Nucleus
from blip.objectives.language_modeling import IGNORED
from blip.shards.sample import Sample
from blip.tasks.blip2_stage2 import Blip2Stage2, Blip2Stage2Config, targets_of

GREEDY = Beam(beams=1, min_length=1, max_length=6)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("frozen")
    return {"clip": clip(root / "clip"), "opt": opt(root / "opt"), "t5": t5(root / "t5")}


def stage2(folders: dict[str, str], kind: str, **settings) -> Blip2Stage2:
    torch.manual_seed(0)
    cfg = Blip2Stage2Config(**settings)
    return cfg.build_task(cfg.model_from(blip2_config(folders["clip"], folders[kind])), tokenizer()).train()


def images(count: int, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)


def batch(task: Blip2Stage2, pairs: list[tuple[str, str]]):
    pictures = images(len(pairs))
    return task.collate([Example(str(i), pictures[i], list(pair)) for i, pair in enumerate(pairs)])


def test_a_causal_model_says_the_text_and_its_end(folders: dict[str, str]):
    task = stage2(folders, "opt", prompt="a photo of")
    language = task.model.language_model
    spoken = batch(task, [("a photo of", "a red circle"), ("", "blue")]).extra["spoken"]
    tokens = [language.tokenizer.convert_ids_to_tokens(row) for row in spoken.said.ids]
    assert tokens[0] == ["</s>", "a", "photo", "of", "a", "red", "circle", "\n"]
    assert tokens[1] == ["</s>", "blue", "\n", *["<pad>"] * 5]
    counted = targets_of(spoken) != IGNORED
    assert counted.int().tolist() == [[0, 0, 0, 0, 1, 1, 1, 1], [1, 1, 1, 0, 0, 0, 0, 0]]


@pytest.mark.parametrize("std", [0.02, 0.5])
def test_soft_prompts_begin_at_the_scale_that_the_projection_is_given(folders: dict[str, str], std: float):
    torch.manual_seed(0)
    cfg = Blip2Stage2Config()
    model = cfg.model_from(blip2_config(folders["clip"], folders["opt"]).model_copy(update={"projection_std": std}))
    assert model.projection.weight.std().item() == pytest.approx(std, rel=0.15)
    soft = model.soft_prompts(model.encode_image(images(4)))
    expected = std * model.cfg.text.width**0.5  # what the queries found is normalised
    assert soft.pow(2).mean().sqrt().item() == pytest.approx(expected, rel=0.3)


def test_an_encoder_decoder_is_given_the_first_words_and_says_the_rest(folders: dict[str, str]):
    task = stage2(folders, "t5")
    sample = Sample("k", [picture(0)], ["a large red circle"], {})
    cuts = set()
    for seed in range(30):
        given, said = task.prepare(sample, lambda _: images(1)[0], np.random.default_rng(seed)).texts
        assert f"{given} {said}" == "a large red circle"
        assert given
        assert said
        cuts.add(len(given.split()))
    assert cuts == {1, 2, 3}, "every place to split is drawn"
    again = [task.prepare(sample, lambda _: images(1)[0], np.random.default_rng(7)).texts for _ in range(2)]
    assert again[0] == again[1]
    spoken = batch(task, [("a large", "red circle")]).extra["spoken"]
    names = task.model.language_model.tokenizer.convert_ids_to_tokens
    assert names(spoken.given.ids[0]) == ["a", "large", "</s>"]
    assert names(spoken.said.ids[0]) == ["red", "circle", "</s>"]
    one_word = task.prepare(Sample("k", [picture(0)], ["circle"], {}), lambda _: images(1)[0], np.random.default_rng(0))
    assert one_word.texts == ["", "circle"]


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_the_loss_is_that_of_transformers_with_the_prompt_left_out(folders: dict[str, str], kind: str):
    task = stage2(folders, kind)
    pairs = [("a photo of", "a red circle"), ("a", "small blue square")]
    several = batch(task, pairs)
    spoken, language = several.extra["spoken"], task.model.language_model
    soft = task.model.soft_prompts(task.model.encode_image(several.images))
    labels = targets_of(spoken)
    if kind == "opt":
        inputs, mask = language.with_soft(soft, spoken.said)
        labels = torch.cat([labels.new_full(soft.shape[:2], IGNORED), labels], 1)
    else:
        inputs, mask = language.with_soft(soft, spoken.given)
    expected = language.network(inputs_embeds=inputs, attention_mask=mask.long(), labels=labels).loss
    torch.testing.assert_close(task(several)["lm"], expected)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_only_the_qformer_and_the_projection_learn(folders: dict[str, str], kind: str):
    task = stage2(folders, kind)
    task(batch(task, [("", text) for text in TEXTS[:3]]))["lm"].backward()
    without = [name for name, p in task.named_parameters() if p.grad is None]
    assert without == []
    parts = {name.split(".")[1] for name, _ in task.named_parameters()}
    assert parts == {"ln_vision", "qformer", "projection"}
    assert all(p.grad is None for p in task.model.language_model.parameters())
    assert not any("frozen" in name or "visual_encoder" in name for name in task.state_dict())


@pytest.mark.parametrize("kind", ["opt", "t5"])
@pytest.mark.parametrize("decoding", [GREEDY, Beam(beams=3, min_length=1, max_length=6), Nucleus(max_length=6)])
def test_a_text_does_not_depend_on_its_batch(folders: dict[str, str], kind: str, decoding: Beam | Nucleus):
    task = stage2(folders, kind).eval()
    pictures, prompts = images(3), ["a photo of", "a", "a large"]
    uniforms = torch.rand(3, 6, generator=torch.Generator().manual_seed(1))
    together = task.generate(pictures, decoding, uniforms, prompts)
    for i in range(3):
        alone = task.generate(pictures[i : i + 1], decoding, uniforms[i : i + 1], prompts[i : i + 1])
        assert alone.ids[0] == together.ids[i]
        torch.testing.assert_close(alone.log_probability[0], together.log_probability[i], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["opt", "t5"])
def test_images_whose_captions_are_not_known_are_captioned(folders: dict[str, str], kind: str):
    task = stage2(folders, kind, decoding=GREEDY).eval()
    examples = [task.whole(Sample(str(i), [picture(i)], [], {}), lambda _: images(1)[0]) for i in range(2)]
    assert [found.references for found in task.predict(task.collate(examples))] == [[], []]


def test_a_prompt_longer_than_the_model_can_read_is_refused(folders: dict[str, str], tmp_path: Path):
    with pytest.raises(ConfigError, match=r"task.text.tokens is 5, but the prompt takes 4 of them"):
        stage2(folders, "opt", prompt="a photo of", text={"tokens": 5})
    short = {**folders, "opt": opt(tmp_path / "opt", positions=30)}
    with pytest.raises(ConfigError, match=r"task.text.tokens is 32 tokens, which after 4 queries are more than the 30"):
        stage2(short, "opt")
    with pytest.raises(ConfigError, match=r"task.decoding.max_length with the prompt is 31 tokens, which after 4 quer"):
        stage2(short, "opt", text={"tokens": 20})


def test_a_model_without_a_language_model_is_refused(folders: dict[str, str]):
    with pytest.raises(ConfigError, match=r"model.language_model has no value, but blip2_stage2 needs one"):
        Blip2Stage2Config().model_from(blip2_config(folders["clip"]))


def test_training_makes_what_is_shown_likelier(folders: dict[str, str]):
    task = stage2(folders, "opt")
    several = batch(task, [("", text) for text in TEXTS[:4]])
    optimizer = torch.optim.AdamW(task.parameters(), lr=2e-2)
    losses = []
    for _ in range(40):
        loss = task(several)["lm"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.1, "the language model is random, so that soft prompts reach little"
