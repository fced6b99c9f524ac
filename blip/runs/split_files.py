"""Splits one set of images into the splits of a data folder, so that images that look alike stay together."""

import hashlib
from collections import Counter
from collections.abc import Iterator

from blip.capfilt.quality import perceptual_hash
from blip.config import ConfigError
from blip.data.images import decode
from blip.datasets.files import Files, read_files
from blip.shards.manifest import Manifest
from blip.shards.sample import BadSample, Sample, format_counts
from blip.shards.writing import write_shards


def split_files(data: Files, store: str, per_shard: int, revision: str) -> dict[str, Manifest]:
    """Writes the shards of a folder of images: a share for test, the rest as gold and web, which are the same.

    Images that cannot be decoded, or have no text, are counted by reason. Raises ConfigError.
    """
    counts: Counter[str] = Counter()
    for_test: set[str] = set()

    def train() -> Iterator[Sample]:
        for sample in read_files(data, counts):
            try:
                image = decode(sample.images[0])
            except BadSample as error:
                counts[str(error)] += 1
                continue
            if not sample.texts:
                counts["no text"] += 1
            elif goes_to_test(perceptual_hash(image), data.test):
                for_test.add(sample.key)
            else:
                yield sample

    web = write_shards(train(), f"{store}/web", "web", per_shard, revision=revision, counts=counts)
    held_out = (sample for sample in read_files(data, Counter()) if sample.key in for_test)
    test = write_shards(held_out, f"{store}/test", "test", per_shard, revision=revision)
    for split, manifest in {"web": web, "test": test}.items():
        if not manifest.samples:
            raise ConfigError(
                f"data.path {data.path}: no image is left for {split} at data.test={data.test:g}; name more images, or "
                f"another share (left out: {format_counts(counts)})"
            )
    return {"gold": web.model_copy(update={"name": "gold"}), "web": web, "test": test}


def goes_to_test(look: int, share: float) -> bool:
    """Returns whether an image goes to the test split, by a digest of its perceptual hash."""
    digest = hashlib.blake2b(look.to_bytes(8, "big"), digest_size=8).digest()
    return int.from_bytes(digest, "big") < share * 2**64
