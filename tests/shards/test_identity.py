"""A sample's id includes its shard, since many tools repeat their keys in every shard."""

from functools import partial
from itertools import islice
from pathlib import Path

from tiny_models import captioner, picture

from blip.batch import Batch
from blip.data.loader import Loader, LoaderConfig
from blip.data.transforms import TransformConfig
from blip.evaluation.job import evaluation_view
from blip.runs.train import make_prepare
from blip.shards.manifest import Manifest
from blip.shards.reading import samples
from blip.shards.sample import Sample
from blip.shards.writing import write_shard
from blip.storage import open_store
from blip.tasks.captioning import CaptionPrediction


def manifest(root: Path, restart: bool) -> Manifest:
    """Returns four shards of five images, whose keys repeat in each shard with `restart`."""
    store = open_store(root)
    shards = []
    for number in range(4):
        part = [
            Sample(f"{i if restart else 5 * number + i:04d}", [picture(5 * number + i)], [f"dog {number} {i}"])
            for i in range(5)
        ]
        shards.append(write_shard(store, f"part-{number}", part))
    return Manifest(name="gold", root=store.uri, shards=tuple(shards))


def test_images_of_several_shards_are_not_one(tmp_path: Path):
    for restart in (True, False):
        data = manifest(tmp_path / str(restart), restart)
        loader = Loader([data], make_prepare(TransformConfig(size=16), captioner()), Batch.of, LoaderConfig(batch=20))
        (batch,) = islice(loader, 1)
        assert batch.image_ids is not None
        assert len(set(batch.image_ids.tolist())) == len(set(batch.ids)) == 20
        view = partial(evaluation_view, size=16)
        again = Batch.of([captioner().whole(sample, view) for sample in samples(data)])
        assert again.image_ids is not None
        assert set(again.image_ids.tolist()) == set(batch.image_ids.tolist())  # the same image, whoever reads it


def test_every_caption_is_scored(tmp_path: Path):
    scores = []
    for restart in (True, False):
        data = manifest(tmp_path / str(restart), restart)
        predictions = [
            CaptionPrediction(s.key, s.id, f"a dog {s.texts[0]}" if i % 3 else "a cat", s.texts, {})
            for i, s in enumerate(samples(data))
        ]
        scores.append(dict(captioner().score(predictions)))
    assert scores[0] == scores[1]
