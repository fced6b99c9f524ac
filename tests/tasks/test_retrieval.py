"""Ranking of images and texts depends on their content, not on their keys; the likely ones are re-ranked."""

import pytest
import torch

from blip.batch import Batch, Example
from blip.data.transforms import normalise
from blip.metrics import retrieval as metrics
from blip.metrics.retrieval import recalls
from blip.tasks import candidates
from blip.tasks.candidates import Candidates, Rescored, ranks_in_parts
from blip.tasks.ranking import RetrievalPrediction
from blip.tasks.retrieval import Retrieval, RetrievalConfig

TEXTS = ["a red circle", "a blue square", "a green ring", "the yellow cross", "a red cross"]
OWN = ([TEXTS[0], TEXTS[4]], [TEXTS[1]], [TEXTS[2]], [TEXTS[3]])


def batches(task: Retrieval, keys: str) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8) for _ in OWN]
    return [task.collate([Example(keys[i], images[i], OWN[i]) for i in part]) for part in ((0, 1, 2), (3,))]


def judged(task: Retrieval, keys: str = "0123") -> tuple[dict[str, float], list[RetrievalPrediction]]:
    """Returns scores and predictions as the workers of an evaluation compute them."""
    parts = batches(task, keys)
    found = [prediction for batch in parts for prediction in task.predict(batch)]
    if task.needs_rerank:
        predict = task.rerank(found)
        found = [
            prediction
            for batch, places in zip(parts, ((0, 1, 2), (3,)), strict=True)
            for prediction in predict(batch, places)
        ]
    return dict(task.score(found)), found


def test_images_of_one_key_are_told_apart(make):
    task = make(RetrievalConfig(rerank=3)).eval()
    assert judged(task, "0123")[0] == judged(task, "0000")[0]


@pytest.mark.parametrize(("rerank", "chunk"), [(2, 64), (2, 3), (3, 1), (256, 64)])
def test_the_best_by_itc_get_the_logit_of_itm_and_the_rest_stay_below(make, rerank: int, chunk: int):
    task = make(RetrievalConfig(rerank=rerank, chunk=chunk)).eval()
    scores, found = judged(task)
    with torch.no_grad():
        images = torch.cat([normalise(batch.images) for batch in batches(task, "0123")])
        texts = [text for own in OWN for text in own]
        tokens = task.model.encode_image(images)
        cross = task.model.text_encoder.cross_keys_values(tokens)
        itc = torch.stack([p.image for p in found]) @ torch.cat([p.text for p in found]).T
        itm = torch.stack([task.model.match(task.encode_texts([text] * 4), cross)[:, 1] for text in texts], 1)
    owner = torch.tensor([i for i, own in enumerate(OWN) for _ in own])

    def by_hand(similarity: torch.Tensor, logits: torch.Tensor) -> torch.Tensor:
        ranked = similarity - 1000
        for query, row in enumerate(similarity.tolist()):
            for best in sorted(range(len(row)), key=row.__getitem__)[-rerank:]:
                ranked[query, best] = similarity[query, best] + logits[query, best]
        return ranked

    assert scores == recalls(by_hand(itc, itm), by_hand(itc.T, itm.T), owner)
    for row, p in zip(itm, found, strict=True):
        torch.testing.assert_close(p.logits, row[p.near])
        assert len(p.near) >= min(rerank, len(texts))


def test_without_candidates_itc_alone_ranks(make):
    task = make(RetrievalConfig(rerank=0)).eval()
    assert not task.needs_rerank
    scores, found = judged(task)
    itc = torch.stack([p.image for p in found]) @ torch.cat([p.text for p in found]).T
    assert scores == recalls(itc, itc.T, torch.tensor([0, 0, 1, 2, 3]))


def test_re_ranking_other_samples_than_those_of_the_first_pass_fails(make):
    task = make(RetrievalConfig(rerank=3)).eval()
    first, second = batches(task, "0123")
    predictions = [*task.predict(first), *task.predict(second)]
    with pytest.raises(ValueError, match="not those of the first pass"):
        task.rerank(predictions)(second, [2])


@pytest.mark.parametrize("count", [1, 3, 100])
def test_similarities_are_ranked_some_queries_at_a_time_as_all_at_once(count: int, monkeypatch: pytest.MonkeyPatch):
    draw = torch.Generator().manual_seed(0)
    images, texts = torch.randn(7, 4, generator=draw), torch.randn(20, 4, generator=draw)
    owner = torch.arange(20) % 7
    similarity = images @ texts.T
    found = {}
    for entries in (1 << 22, 40, 1):
        monkeypatch.setattr(candidates, "ENTRIES", entries)
        pairs = Candidates(images, texts, count)
        found[entries] = [[tensor.tolist() for tensor in pairs.of(image)] for image in range(7)]
        assert torch.equal(
            ranks_in_parts(texts, images, owner, torch.arange(7), None),
            metrics.ranks_by_group(similarity.T, owner, torch.arange(7)),
        )
    assert found[1] == found[40] == found[1 << 22]
    best = similarity.topk(min(count, 20), dim=1).indices
    best_images = similarity.T.topk(min(count, 7), dim=1).indices
    for image, (near, (by_image, by_text)) in enumerate(found[1]):
        assert {text for text, own in zip(near, by_image, strict=True) if own} == set(best[image].tolist())
        assert {text for text, own in zip(near, by_text, strict=True) if own} == {
            text for text, row in enumerate(best_images.tolist()) if image in row
        }


def test_unscored_pairs_keep_the_order_of_similarity_below_a_logit_however_low():
    similarity = torch.tensor([[0.50001, 0.5, -1.0, 1.0]])
    pairs = Rescored.of(torch.tensor([0]), torch.tensor([2]), torch.tensor([-2000.0]))
    assert pairs.scores(0, similarity).argsort(descending=True).tolist() == [[2, 3, 0, 1]]


def test_texts_of_one_image_share_its_keys_and_values(make):
    """One row of keys and values for all texts yields the same as a copy for each text."""
    task = make(RetrievalConfig()).eval()
    (batch, _) = batches(task, "0123")
    tokens = task.model.encode_image(normalise(batch.images))[:1]
    cross = task.model.text_encoder.cross_keys_values(tokens)
    copies = [(keys.expand(5, -1, -1, -1), values.expand(5, -1, -1, -1)) for keys, values in cross]
    texts = task.encode_texts(TEXTS)
    torch.testing.assert_close(task.model.match(texts, cross), task.model.match(texts, copies))
