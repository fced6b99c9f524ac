"""Images and texts are ranked by what they are, not by what they are called, and the likely ones once more."""

import pytest
import torch

from blip.batch import Batch, Example
from blip.data.transforms import normalise
from blip.metrics.retrieval import recalls
from blip.tasks.retrieval import Retrieval, RetrievalConfig, RetrievalPrediction

TEXTS = ["a red circle", "a blue square", "a green ring", "the yellow cross", "a red cross"]
OWN = ([TEXTS[0], TEXTS[4]], [TEXTS[1]], [TEXTS[2]], [TEXTS[3]])


def batches(task: Retrieval, keys: str) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8) for _ in OWN]
    return [task.collate([Example(keys[i], images[i], OWN[i]) for i in part]) for part in ((0, 1, 2), (3,))]


def judged(task: Retrieval, keys: str = "0123") -> tuple[dict[str, float], list[RetrievalPrediction]]:
    """Scores and predictions, as workers of an evaluation come to them."""
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
        itm = torch.stack([task.model.match(task.tokens([text] * 4), cross)[:, 1] for text in texts], 1)
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
