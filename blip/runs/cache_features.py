"""Cache-features: the frozen image encoder's features of a fixed data set, as shards that train in place of images."""

import json
import shutil
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import torch

from blip.config import ConfigError
from blip.data.features import EXTENSION, META, write_features
from blip.data.images import decode
from blip.data.transforms import eval_transform
from blip.digest import value_digest
from blip.distributed import device
from blip.logs import log
from blip.models.blip2 import Blip2Config
from blip.models.frozen import weights_type
from blip.models.image_encoder import ImageEncoder, ImageEncoderConfig, load_image_encoder, with_digest
from blip.progress import progress
from blip.results import FeaturesResult
from blip.runs.config import RunConfig, features_of, training
from blip.runs.context import RunContext
from blip.runs.train import with_frozen
from blip.shards.manifest import Manifest, Shard
from blip.shards.reading import read_shard
from blip.shards.sample import BadSample, Rejected, Sample, format_counts, one_sample
from blip.shards.writing import write_shard
from blip.storage import Store, open_store, writing
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.model_folder import TOKENIZER

FEATURES_FORMAT = 1
"""Part of the key of what was made; raised when a change of the code changes it."""


def cache_features(
    context: RunContext,
    stage: str,
    *,
    data: str | Path,
    out: str | Path,
    frozen: str | Path | None = None,
    batch: int = 64,
) -> FeaturesResult:
    """Encodes the images of a stage's sources with its frozen image encoder, and writes a data folder of features.

    Images are whole and not augmented. Texts and metadata are kept. Shards lie in the store; those that are there from
    before are not made again. `frozen` is the folder of models that `make_frozen` wrote, as of `train`.
    Raises ConfigError if the stage has no frozen image encoder; ShardError.
    """
    began = time.monotonic()
    context, cfg = with_frozen(context, stage, frozen)
    if not isinstance(cfg.model, Blip2Config) or cfg.model.vision.trained:
        raise ConfigError(
            f"stage {stage}: has no frozen image encoder, whose features could be kept; name a stage of BLIP-2 that "
            "leaves its image encoder as it is (model.vision.trained=false)"
        )
    vision = with_digest(cfg.model.vision)
    made = features_of(vision)
    kept = {"format": FEATURES_FORMAT, "type": str(weights_type(vision.precision)), **made}
    store = open_store(context.store).join("features", value_digest(kept)[:12])
    encoder = load_image_encoder(vision).to(device()).eval()
    folder, rejected, counts, spent = Path(out), Rejected(), {"made": 0, "found": 0}, 0.0
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    manifests = [Manifest.load(Path(data) / f"{source}.json") for source in cfg.sources]
    for source, manifest in zip(cfg.sources, manifests, strict=True):
        manifest.check_not_empty(f"{data}/{source}.json")
    total = sum(manifest.samples for manifest in manifests)
    with progress(total, "features", "images") as bar:
        for source, manifest in zip(cfg.sources, manifests, strict=True):
            if META in manifest.meta:
                raise ConfigError(f"{data}/{source}.json: holds features already; name the folder with the images")
            shards = []
            for shard in manifest.shards:
                found = known_shard(store, shard)
                counts["found" if found else "made"] += shard.samples
                started = time.monotonic()
                shards.append(found or make_shard(store, manifest, shard, encoder, vision, batch, rejected))
                spent += 0.0 if found else time.monotonic() - started
                bar.advance(shard.samples)
            meta = {**manifest.meta, META: made}
            Manifest(
                name=source,
                root=store.uri,
                shards=tuple(shards),
                parents=(manifest.digest,),
                revision=context.revision,
                counts={**manifest.counts, **rejected},
                meta=meta,
            ).save(folder / f"{source}.json")
    shutil.copytree(Path(data) / TOKENIZER, folder / TOKENIZER, dirs_exist_ok=True)
    if rejected:
        log.warning("left out %s", format_counts(rejected))
    return FeaturesResult(
        images=counts["made"],
        images_per_second=counts["made"] / spent if spent else 0.0,
        found=counts["found"],
        bytes=sum(shard.bytes for source in cfg.sources for shard in Manifest.load(folder / f"{source}.json").shards),
        rejected=dict(rejected),
        seconds=time.monotonic() - began,
    )


def features_or_images(
    context: RunContext, stage: str, *, data: str | Path, out: str | Path, frozen: str | Path | None = None
) -> FeaturesResult:
    """Writes the data folder on which a stage trains: of features if its settings ask for them (`task.features`), else
    a copy of the folder's manifests, which name the same shards of images.
    """
    cfg = context.settings(RunConfig, training(stage))
    if isinstance(cfg.task, Blip2Stage1Config | Blip2Stage2Config) and cfg.task.features:
        return cache_features(context, stage, data=data, out=out, frozen=frozen)
    began = time.monotonic()
    with writing(Path(out)):
        shutil.copytree(data, out, dirs_exist_ok=True)
    return FeaturesResult(seconds=time.monotonic() - began)


def record_key(shard: Shard) -> str:
    """Returns the key of the record of a shard's features; a selection of a shard has features of its own."""
    return f"done/{value_digest([shard.sha256, shard.index_sha256])[:24]}.json"


def known_shard(store: Store, shard: Shard) -> Shard | None:
    """Returns the shard of features that was made of a shard; None if there is none."""
    key = record_key(shard)
    found = Shard.model_validate_json(store.get(key)) if store.exists(key) else None
    return found if found and store.exists(found.name) else None


def make_shard(
    store: Store,
    manifest: Manifest,
    shard: Shard,
    encoder: ImageEncoder,
    vision: ImageEncoderConfig,
    batch: int,
    rejected: Rejected,
) -> Shard:
    """Writes the features of a shard's images, and last the record that it is done."""
    samples = read_shard(manifest.store, shard, rejected)
    made = write_shard(store, f"features-{shard.sha256[:12]}", encoded(samples, encoder, vision.size, batch, rejected))
    store.put(record_key(shard), json.dumps(made.model_dump()).encode())
    return made


@torch.no_grad()
def encoded(
    samples: Iterator[Sample], encoder: ImageEncoder, size: int, batch: int, rejected: Rejected
) -> Iterator[Sample]:
    """Yields samples with features in place of their image; bad ones are counted."""
    transform, place = eval_transform(size), next(encoder.parameters()).device

    def good() -> Iterator[tuple[Sample, torch.Tensor]]:
        for sample in samples:
            try:
                with one_sample(sample.id):
                    yield sample, transform(decode(sample.images[0]))
            except BadSample as error:
                rejected.add(error)

    pairs = good()
    while chunk := list(islice(pairs, batch)):
        features = encoder(torch.stack([image for _, image in chunk]).to(place))
        for (sample, _), found in zip(chunk, features, strict=True):
            yield Sample(sample.key, [write_features(found)], sample.texts, sample.meta, EXTENSION)
