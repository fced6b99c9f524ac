"""Retrieval by a Q-Former: similarity of the best query, re-ranking by the mean over queries."""

import pytest
import torch
from tiny_blip2 import blip2_config, clip
from tiny_models import TEXTS, tokenizer

from blip.batch import Example, Tokens
from blip.config import load_config
from blip.evaluation.job import EvaluateConfig
from blip.models.blip2 import best_query
from blip.runs.config import RunConfig
from blip.tasks.blip2_retrieval import Blip2Retrieval, Blip2RetrievalConfig
from blip.tasks.candidates import best_similarity, parts
from blip.tasks.text import TextLengths


@pytest.fixture(scope="module")
def task(tmp_path_factory: pytest.TempPathFactory) -> Blip2Retrieval:
    torch.manual_seed(0)
    cfg = Blip2RetrievalConfig(text=TextLengths(tokens=16), rerank=3, chunk=2)
    model = cfg.model_from(blip2_config(clip(tmp_path_factory.mktemp("clip"))))
    made = cfg.build_task(model, tokenizer())
    assert isinstance(made, Blip2Retrieval)
    return made.eval()


def examples(count: int = 6) -> list[Example]:
    """Images with one or two texts each, so that an image is not its texts' number."""
    generator = torch.Generator().manual_seed(1)
    pixels = torch.randint(0, 256, (count, 3, 16, 16), generator=generator, dtype=torch.uint8)
    return [Example(str(i), pixels[i], [TEXTS[i], *([TEXTS[7]] if i == 2 else [])], id=f"s/{i}") for i in range(count)]


def test_several_vectors_are_compared_by_the_most_similar_one_in_parts_too(monkeypatch):
    images, texts = torch.randn(5, 4, 8), torch.randn(7, 8)
    expected = best_query(images, texts)
    torch.testing.assert_close(best_similarity(images, texts), expected)
    torch.testing.assert_close(best_similarity(texts, images), expected.T)
    monkeypatch.setattr("blip.tasks.candidates.ENTRIES", 60)
    found = list(parts(images, texts))
    assert len(found) == 3
    torch.testing.assert_close(torch.cat([similarity for _, similarity in found]), expected)
    torch.testing.assert_close(torch.cat([similarity for _, similarity in parts(texts, images)]), expected.T)


def test_the_best_are_ranked_by_itm_plus_itc_and_the_others_below_them(task: Blip2Retrieval):
    batch = task.collate(examples())
    first = task.predict(batch)
    assert first[0].image.shape == (4, 8)
    second = task.rerank(first)(batch, range(len(first)))
    texts = [text for example in examples() for text in example.texts]
    tokens = tokenizer().encode(texts, 16)
    with torch.no_grad():
        similarity = best_query(torch.stack([p.image for p in first]), torch.cat([p.text for p in first]))
        cross = task.model.qformer.cross_keys_values(task.model.encode_image(batch.images))
        logits = torch.stack(
            [
                task.model.match(
                    Tokens(tokens.ids, tokens.mask),
                    [(k[[i]].expand(len(texts), -1, -1, -1), v[[i]].expand(len(texts), -1, -1, -1)) for k, v in cross],
                )[:, 1]
                for i in range(len(first))
            ]
        )
    owner = torch.tensor([i for i, example in enumerate(examples()) for _ in example.texts])

    def ranks(scores: torch.Tensor, near: torch.Tensor, own: torch.Tensor) -> list[int]:
        found = []
        for row in range(len(scores)):
            order = sorted(range(scores.shape[1]), key=lambda j: (j in near[row], scores[row, j]), reverse=True)
            found.append(next(rank for rank, j in enumerate(order) if own[row, j]))
        return found

    own = torch.arange(len(first))[:, None] == owner[None]
    by_text = similarity.T.topk(3, dim=1).indices
    by_image = similarity.topk(3, dim=1).indices
    score = torch.full_like(similarity, 0.0)
    for i in range(len(first)):
        for j in range(len(texts)):
            score[i, j] = similarity[i, j] + (logits[i, j] if j in by_image[i] else 0)
    expected_text = ranks(score, by_image, own)
    score_t = similarity.T.clone()
    for j in range(len(texts)):
        for i in by_text[j].tolist():
            score_t[j, i] += logits[i, j]
    expected_image = ranks(score_t, by_text, own.T)
    text_ranks, image_ranks = task.ranks(second)
    assert text_ranks.tolist() == expected_text
    assert image_ranks.tolist() == expected_image
    assert {"tr1", "ir1", "mean"} <= dict(task.score(second)).keys()


def test_training_has_the_first_stages_losses_and_all_texts_of_an_image_are_its_own(task: Blip2Retrieval):
    several = examples(4)
    same = [*several, Example("0b", several[0].image, [TEXTS[5]], id="s/0")]
    losses = task(task.collate(same))
    assert losses.keys() == {"itc", "itm", "lm"}
    ids = task.collate(same).image_ids
    assert ids is not None
    positive, excluded = task.alignment.relations(ids, ids)
    assert positive[0].tolist() == [True, False, False, False, True]
    assert not excluded.any()


@pytest.mark.parametrize(
    ("preset", "lr", "betas", "decay"), [("blip2_g", 1e-5, (0.9, 0.999), 0.95), ("blip2_l", 5e-6, (0.9, 0.98), 1.0)]
)
def test_the_recipe_says_what_the_paper_says(preset, lr, betas, decay):
    cfg = load_config(RunConfig, "blip2_retrieval", preset)
    assert (cfg.epochs, cfg.loader.batch, cfg.transform.size) == (5, 224, 364)
    assert (cfg.optimizer.lr, cfg.optimizer.betas, cfg.optimizer.layer_decay) == (lr, betas, decay)
    assert cfg.model.model_dump()["vision"]["trained"]
    evaluated = load_config(EvaluateConfig, "evaluate", preset, ["tasks=[retrieval]"]).retrieval
    assert isinstance(evaluated, Blip2RetrievalConfig)
    assert evaluated.rerank == 128
