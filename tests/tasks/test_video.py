"""Videos are frames whose tokens are concatenated, for models of images."""

import pytest
import torch

from blip.batch import Batch
from blip.data.transforms import normalise
from blip.metrics.retrieval import median_rank
from blip.shards.sample import Sample
from blip.tasks.retrieval import Retrieval, RetrievalConfig
from blip.tasks.video import VideoQAConfig, VideoRetrievalConfig
from blip.tasks.vqa import VQAConfig, VQAPrediction

TEXTS = ["a red circle", "a blue square", "a green ring"]


def view(image: bytes) -> torch.Tensor:
    draw = torch.Generator().manual_seed(image[0])
    return torch.randint(0, 256, (3, 16, 16), generator=draw, dtype=torch.uint8)


def clip(number: int, frames: int = 4, **meta) -> Sample:
    return Sample(f"v{number}", [bytes([10 * number + i]) for i in range(frames)], [TEXTS[number % 3]], meta)


def batch_of(task, *samples: Sample) -> Batch:
    return task.collate([task.whole(sample, view) for sample in samples])


def test_a_text_is_matched_with_the_tokens_of_all_frames(make):
    task = make(VideoRetrievalConfig(rerank=3)).eval()
    batch = batch_of(task, *(clip(i) for i in range(3)))
    assert batch.images.shape == (3, 4, 3, 16, 16)
    first = task.predict(batch)
    found = task.rerank(first)(batch, range(3))
    model = task.model
    frames = normalise(batch.images[1])
    tokens = model.encode_image(frames)
    feature = model.image_feature(tokens).mean(0)
    torch.testing.assert_close(first[1].image, feature / feature.norm())
    cross = model.text_encoder.cross_keys_values(tokens.flatten(0, 1)[None])
    logits = torch.stack([model.match(task.encode_texts([text]), cross)[0, 1] for text in TEXTS])
    torch.testing.assert_close(found[1].logits, logits[found[1].near.long()])
    assert {"ir1", "ir5", "ir10", "tr1", "median_rank"} <= set(dict(task.score(found)))


def test_a_clip_of_one_frame_is_an_image(make):
    video, image = make(VideoRetrievalConfig(rerank=2)).eval(), make(RetrievalConfig(rerank=2)).eval()
    assert isinstance(image, Retrieval)
    clips = [clip(i, frames=1) for i in range(3)]
    one, other = (task.predict(batch_of(task, *clips)) for task in (video, image))
    for mine, its in zip(one, other, strict=True):
        torch.testing.assert_close(mine.image, its.image)


def test_the_median_rank_counts_from_one():
    assert median_rank(torch.tensor([0, 0, 4])) == 1
    assert median_rank(torch.tensor([0, 1, 4, 9])) == 3.5


def test_answers_about_videos_are_those_about_their_frames(make):
    task, image = make(VideoQAConfig()).eval(), make(VQAConfig()).eval()
    batch = batch_of(task, clip(0, answers=["red"]), clip(1, answers=["blue"]))
    (one, _) = task.predict(batch)
    single = image.predict(batch_of(image, clip(0, frames=1, answers=["red"])))
    still = task.predict(batch_of(task, clip(0, frames=1, answers=["red"])))
    assert single[0].answer == still[0].answer
    assert one.said == ["red"]
    whole = task.model.encode_question(normalise(batch.images), batch.text)
    first = task.model.encode_question(normalise(batch.images[:, :1]), batch.text)
    assert not torch.allclose(whole[0][0], first[0][0])


@pytest.mark.parametrize(("answers", "accuracy"), [(["Red", "dog"], 50), (["red", "cat "], 100), (["a red", "x"], 0)])
def test_an_answer_counts_if_it_is_the_published_one(make, answers: list[str], accuracy: float):
    said = [["red"], ["cat"]]
    found = [VQAPrediction(str(i), answer, said[i], i) for i, answer in enumerate(answers)]
    assert dict(make(VideoQAConfig()).score(found)) == {"accuracy": accuracy}
