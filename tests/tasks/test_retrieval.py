"""Images and texts are ranked by what they are, not by what they are called."""

import torch

from blip.batch import Example
from blip.tasks.retrieval import Retrieval, RetrievalConfig

TEXTS = ["a red circle", "a blue square", "a green ring", "the yellow cross"]


def test_images_of_one_key_are_told_apart(make):
    task = make(RetrievalConfig(rerank=3)).eval()
    assert isinstance(task, Retrieval)
    generator = torch.Generator().manual_seed(0)
    images = [torch.randint(0, 256, (3, 16, 16), generator=generator, dtype=torch.uint8) for _ in TEXTS]
    scores = []
    for keys in ("0123", "0000"):
        batches = [task.collate([Example(keys[i], images[i], [TEXTS[i]]) for i in part]) for part in ((0, 1), (2, 3))]
        scores.append(task.score([p for batch in batches for p in task.predict(batch)]))
    assert scores[0] == scores[1]
    assert not task.seen
