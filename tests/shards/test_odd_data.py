"""Odd tars, names, texts, images and indexes: no traceback, no hang, bounded memory, all samples used or counted."""

import io
import json
import random
import resource
import signal
import tarfile
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext, suppress
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_models import captioner

from blip.capfilt.pairs import CarriedConfig, make_pair, read_pairs
from blip.capfilt.quality import QualityConfig
from blip.config import ConfigError
from blip.data.images import decode
from blip.data.loader import Loader, LoaderConfig
from blip.data.transforms import eval_transform
from blip.evaluation.job import evaluation_view
from blip.shards.discover import Limits, discover
from blip.shards.manifest import Manifest
from blip.shards.reading import ShardFile, good_samples, read_shard
from blip.shards.sample import BadSample, Rejected, Sample
from blip.shards.verification import ShardError
from blip.shards.writing import write_shards
from blip.storage import StoreError
from blip.zoo.contract import View

CASES = 360
GOOD = 6
"""Valid samples in each tar, which must not be lost."""
SECONDS = 20
"""Time limit of a case, with other programs running."""
MEGABYTES = 400
"""Largest growth of the process's memory over all cases; the declared sizes are terabytes."""
Members = list[tuple[tarfile.TarInfo, bytes]]


@contextmanager
def limited(case: str) -> Iterator[None]:
    def late(*_):
        raise AssertionError(f"{case}: it hangs")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(SECONDS)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def picture(rng: random.Random, form: str = "PNG") -> bytes:
    pixels = np.random.default_rng(rng.randrange(1 << 30)).integers(0, 256, (20, 20, 3), dtype=np.uint8)
    file = io.BytesIO()
    image = Image.fromarray(pixels)
    if form == "GIF":
        image.save(file, form, save_all=True, append_images=[image.rotate(90), image.rotate(180)])
    else:
        image.save(file, form)
    return file.getvalue()


def member(name: str, data: bytes, **fields) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.size = len(data)
    for field, value in fields.items():
        setattr(info, field, value)
    return info, data


def packed(members: Members) -> bytes:
    """Returns a tar with the headers as they are, whether or not they match the content."""
    blocks = []
    for info, data in members:
        blocks.append(
            info.tobuf(tarfile.PAX_FORMAT if info.pax_headers else tarfile.GNU_FORMAT, "utf-8", "surrogateescape")
        )
        blocks.append(data + bytes(-len(data) % 512))
    return b"".join(blocks) + bytes(10240)


def sound(rng: random.Random) -> Members:
    names = [f"{i:04d}" for i in range(GOOD)]
    return [
        one
        for name in names
        for one in (member(f"{name}.png", picture(rng)), member(f"{name}.txt", f"a dog {name}".encode()))
    ]


TEXTS: list[bytes] = [
    b'{"texts": null}',
    b'{"texts": 5}',
    b'{"texts": true}',
    b'{"texts": "abc"}',
    b'{"texts": {"a": 1}}',
    b'{"texts": ["a cat", ""]}',
    b'{"texts": ["a cat", null, 3]}',
    b'{"texts": [null]}',
    b'{"texts": []}',
    b'{"caption": "a cat"}',
    b'{"caption": "cut \\ud83d"}',
    b'{"\\udcff": "\\ud83d", "url": "\\udcff", "license": "\\ud83d", "texts": ["\\ud83d\\ude00 and \\ud83d"]}',
    b'{"texts": ["x", "y"], "license": ["list"], "source": {"deep": null}, "opt_out": "no"}',
    b"[1]",
    b"1",
    b"null",
    b'"text"',
    b"",
    b"{",
    b'{"texts": ["cut',
    b"[" * 100_000,
    b'{"a":' * 100_000,
    b'{"a":' * 200 + b"1" + b"}" * 200,
    b'{"texts": [' + b'"a",' * 40_000 + b'"a"]}',
    b'{"n": ' + b"9" * 6000 + b', "caption": "a cat"}',
    b'{"n": NaN, "m": -Infinity, "caption": "a cat"}',
    b"\xff\xfe{\x00}\x00",
    b"\xef\xbb\xbf{}",
    b'{"caption": "nul \\u0000 char"}',
    b'{"caption": 1e999}',
]
NAMES = [
    "odd",
    "caf\udce9",
    "with space",
    "photo.v2.12",
    "12.05",
    "../../up",
    "/etc/passwd",
    "x" * 300,
    "a/" * 400 + "b",
    "日本",
]
NAMES += [".hidden", "a.__key__"]
EXTENSIONS = [
    "png",
    "JPG",
    "jpeg",
    "webp",
    "0.png",
    "seg.png",
    "1" * 5000 + ".jpg",
    "__key__",
    "__url__",
    "txt.png",
    "",
    "gif",
]


def odd_texts(rng: random.Random, members: Members) -> None:
    members.append(member("odd.png", picture(rng)))
    members.append(member("odd.json", rng.choice(TEXTS)))
    beside = [b"good", b"", b" \n", b"\xff\xfe", b"\xef\xbb\xbfbom", b"nul \x00", b"x" * (2 << 20)]
    if rng.random() < 0.3:
        members.append(member("odd.txt", rng.choice(beside)))


def odd_names(rng: random.Random, members: Members) -> None:
    name = rng.choice(NAMES)
    for extension in rng.sample(EXTENSIONS, 2):
        nul = {"pax_headers": {"path": f"{name}\0.{extension}"}} if rng.random() < 0.2 else {}
        members.append(member(f"{name}.{extension}", picture(rng), **nul))
    rng.shuffle(members)


def odd_images(rng: random.Random, members: Members) -> None:
    data = bytearray(picture(rng, rng.choice(["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])))
    match rng.randrange(4):
        case 0:
            del data[rng.randrange(len(data)) :]
        case 1:
            for _ in range(rng.randrange(1, 20)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 2:
            data = bytearray(rng.randbytes(rng.randrange(2000)))
        case 3:
            data[16:24] = (65500).to_bytes(4) + (2700).to_bytes(4)  # where a PNG declares its size
    members.append(member(f"odd.{rng.choice(['png', 'jpg', 'webp'])}", bytes(data)))
    members.append(member("odd.txt", b"a cat"))


def odd_headers(rng: random.Random, members: Members) -> None:
    data = picture(rng)
    odd = rng.choice(
        [
            member("odd.png", data, size=1 << 40),
            member("odd.png", data, size=1 << 63),
            member("odd.png", data, size=-5),
            member("odd.png", data, pax_headers={"size": str(1 << 40)}),
            member("odd.png", data, pax_headers={"size": str(1 << 95)}),
            member("odd.png", data, pax_headers={"size": "-512"}),
            member(
                "odd.png",
                data,
                pax_headers={"GNU.sparse.major": "1", "GNU.sparse.minor": "0", "GNU.sparse.realsize": str(1 << 40)},
            ),
            member("odd.png", data, pax_headers={"GNU.sparse.map": "0,10", "GNU.sparse.size": str(1 << 40)}),
            member("odd.png", data, pax_headers={"comment": "x" * 100_000}),
            member("odd.png", b"", type=tarfile.SYMTYPE, linkname="0000.png"),
            member("odd.png", b"", type=tarfile.LNKTYPE, linkname="0000.png"),
            member("odd.png", b"", type=tarfile.CHRTYPE),
            member("odd.png", b"", type=tarfile.FIFOTYPE),
            member("odd.png", b"", type=tarfile.DIRTYPE),
            member("odd.png", bytes(512), type=tarfile.GNUTYPE_SPARSE),
            member("odd.png", data, type=b"Z"),
            member("0000.png", data),
        ]
    )
    members.insert(2 * rng.randrange(GOOD + 1), odd)


def flipped(rng: random.Random, tar: bytes) -> bytes:
    """Returns a tar with bytes changed, blocks lost, doubled or zeroed, cut short, or with another tar appended."""
    data = bytearray(tar)
    match rng.randrange(6):
        case 0:
            for _ in range(rng.randrange(1, 30)):
                data[rng.randrange(len(data))] = rng.randrange(256)
        case 1:
            del data[rng.randrange(len(data)) :]
        case 2:
            start = 512 * rng.randrange(len(data) // 512)
            del data[start : start + 512 * rng.randrange(1, 4)]
        case 3:
            start = 512 * rng.randrange(len(data) // 512)
            data[start:start] = rng.randbytes(512 * rng.randrange(1, 4))
        case 4:
            start = 512 * rng.randrange(len(data) // 512)
            data[start : start + 1024] = bytes(1024)
        case 5:
            data += packed(sound(rng))
    return bytes(data)


def case(seed: int, folder: Path) -> tuple[str, Path]:
    """Returns the kind of a case and its tar."""
    rng = random.Random(seed)
    members = sound(rng)
    kinds: list[Callable[[random.Random, Members], None]] = [odd_texts, odd_names, odd_images, odd_headers]
    kind = kinds[seed % len(kinds)]
    kind(rng, members)
    tar = packed(members)
    whole = seed % 3 != 0
    path = folder / f"{seed}" / "00000.tar"
    path.parent.mkdir()
    path.write_bytes(tar if whole else flipped(rng, tar))
    return f"{kind.__name__}{'' if whole else ', flipped'}", path


def prepare(sample: Sample, rng: np.random.Generator) -> str:  # noqa: ARG001
    if not sample.texts:
        raise BadSample("empty text")
    decode(sample.images[0])
    "".join(sample.texts).encode()
    json.dumps(sample.meta, ensure_ascii=False, indent=1).encode()
    return sample.id


def learnt(manifest: Manifest) -> tuple[int, Counter[str]]:
    """Returns the number of samples that an epoch of training uses, and the rejected ones."""
    loader = Loader([manifest], prepare, list, LoaderConfig(batch=1))
    used = {one for batch in islice(loader, loader.steps_per_epoch) for one in batch}
    return len(used), loader.rejected


def captioned(manifest: Manifest) -> tuple[int, Counter[str]]:
    rejected = Rejected()
    views = [View("16 pixels", eval_transform(16))]
    make = partial(make_pair, views=views, quality=QualityConfig(min_side=1), carried=CarriedConfig(), skip=())
    with ShardFile(manifest.store, manifest.shards[0], path_of(manifest)) as file, ThreadPoolExecutor(2) as pool:
        pairs = list(read_pairs(file, pool, make, 4, rejected))
    for pair in pairs:
        "".join([*(text.text for text in pair.texts), *pair.carried.values()]).encode()
    return len(pairs), rejected


def evaluated(manifest: Manifest) -> tuple[int, Counter[str]]:
    task, rejected, used = captioner(), Rejected(), 0
    with ShardFile(manifest.store, manifest.shards[0], path_of(manifest)) as file:
        for sample in good_samples(file, rejected):
            try:
                task.whole(sample, partial(evaluation_view, size=16))
                used += 1
            except BadSample as e:
                rejected.add(e)
    return used, rejected


def path_of(manifest: Manifest) -> Path:
    path = manifest.store.path(manifest.shards[0].name)
    assert path is not None
    return path


def test_no_odd_tar_ends_in_a_traceback_or_loses_a_sample_uncounted(tmp_path: Path):
    outcomes: Counter[str] = Counter()
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for seed in range(CASES):
        kind, path = case(seed, tmp_path)
        with limited(f"{seed}: {kind}"):
            try:
                manifest = discover(path.parent, limits=Limits(unusable=1, without_text=1))
            except ShardError:
                if "flipped" not in kind:
                    raise
                outcomes["refused"] += 1
                continue
            images = manifest.samples + sum(manifest.counts.values())
            assert "flipped" in kind or images >= GOOD, f"{seed}: {kind}: {manifest.counts}"
            if not manifest.samples:
                continue
            Manifest.model_validate_json(manifest.model_dump_json())
            for way in (learnt, captioned, evaluated):
                with suppress(ShardError) if "flipped" in kind else nullcontext():
                    used, rejected = way(manifest)
                    assert used + rejected.total() >= manifest.samples, (
                        f"{seed}: {kind}: {way.__name__}: {used} {rejected} {manifest}"
                    )
                    assert "flipped" in kind or used >= GOOD, (
                        f"{seed}: {kind}: {way.__name__}: {used} {rejected} {manifest.counts}"
                    )
                    unexpected = [reason for reason in rejected if reason.startswith("unexpected")]
                    assert not unexpected, f"{seed}: {kind}: {way.__name__}: {unexpected}"
            outcomes["read"] += 1
    assert outcomes["read"] > CASES / 2
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024 < MEGABYTES


@pytest.mark.parametrize(("kind", "content"), [(b"x", b""), (b"L", b""), (b"x", b"9" * 32_256), (b"g", b"9" * 32_256)])
def test_headers_cost_no_more_than_their_size(tmp_path: Path, kind: bytes, content: bytes):
    """tarfile reads chains of extended headers by recursion, and numbers in them in quadratic time."""
    header = tarfile.TarInfo("extended")
    header.type, header.size = kind, len(content)
    chain = (header.tobuf(tarfile.USTAR_FORMAT) + content) * (2000 if not content else 100)
    (tmp_path / "0.tar").write_bytes(chain + packed([member("first.png", b"x"), *sound(random.Random(0))]))
    with limited("chain of headers"):
        assert discover(tmp_path).samples >= GOOD


def test_no_odd_index_gives_other_samples(tmp_path: Path):
    rng = random.Random(0)
    samples = [Sample(f"{i}", [picture(rng)], [f"text {i}"]) for i in range(8)]
    manifest = write_shards(samples, tmp_path, "web")
    (shard,) = manifest.shards
    (index,) = tmp_path.glob("*.idx.jsonl")
    lines = index.read_bytes().splitlines(keepends=True)
    for seed in range(60):
        rng = random.Random(seed)
        odd = list(lines)
        match seed % 4:
            case 0:
                i, j = rng.sample(range(8), 2)
                odd[i], odd[j] = odd[j], odd[i]
            case 1:
                del odd[rng.randrange(8) :]
            case 2:
                row = rng.randrange(8)
                odd[row] = bytes(b if rng.random() > 0.1 else rng.randrange(256) for b in odd[row])
            case 3:
                key, members = json.loads(odd[0])
                odd[0] = (
                    json.dumps([key, {name: [1 << rng.randrange(20, 90), 1 << 62] for name in members}]).encode()
                    + b"\n"
                )
        index.write_bytes(b"".join(odd))
        assert list(read_shard(manifest.store, shard)) == samples


def test_no_odd_manifest_ends_in_a_traceback(tmp_path: Path):
    manifest = write_shards([Sample("0", [b"image"], ["text"])], tmp_path, "web")
    path = tmp_path / "web.json"
    manifest.save(path)
    whole = path.read_bytes()
    odd: list[object] = [
        None,
        -1,
        10**9,
        10**30,
        1e400,
        True,
        "",
        "../up",
        "\ud83d",
        [],
        {},
        [[]],
        "s3:/",
        "x://y",
        float("nan"),
        "a" * 5000,
    ]
    for value in odd:
        for keys in (
            ("name",),
            ("root",),
            ("shards",),
            ("counts",),
            ("meta",),
            *(("shards", 0, key) for key in json.loads(whole)["shards"][0]),
        ):
            values = json.loads(whole)
            place = values
            for key in keys[:-1]:
                place = place[key]
            place[keys[-1]] = value
            path.write_text(json.dumps(values))
            with suppress(ConfigError, StoreError), limited(f"{keys}={value!r}"):
                loaded = Manifest.load(path)
                if loaded.samples:
                    next(iter(Loader([loaded], lambda sample, _: sample.key, list, LoaderConfig(batch=1))))
    for seed in range(60):
        rng = random.Random(seed)
        data = bytearray(whole)
        for _ in range(rng.randrange(1, 5)):
            data[rng.randrange(len(data))] = rng.randrange(256)
        path.write_bytes(data[: rng.randrange(len(data))] if seed % 3 == 0 else data)
        with suppress(ConfigError):
            Manifest.load(path)
    path.write_bytes(b"[" * 100_000)
    with pytest.raises(ConfigError, match="is not JSON"):
        Manifest.load(path)


def fails(sample: Sample, _: np.random.Generator) -> str:
    if sample.key in ("3", "5"):
        raise TypeError("nobody thought of this")
    return sample.key


def test_an_unexpected_error_costs_a_sample_and_many_cost_the_training(tmp_path: Path):
    manifest = write_shards([Sample(f"{i}", [b"image"], ["text"]) for i in range(40)], tmp_path, "web")
    loader = Loader([manifest], fails, list, LoaderConfig(batch=1))
    assert len(list(islice(loader, 40))) == 40
    assert loader.rejected == {"unexpected TypeError": 2}
    with pytest.raises(ShardError, match=r"1 of 40 samples failed unexpectedly.*TypeError: nobody thought of this"):
        list(islice(Loader([manifest], fails, list, LoaderConfig(batch=1, unexpected=0)), 40))
    assert len(list(islice(Loader([manifest], fails, list, LoaderConfig(batch=1, unexpected=0.5)), 40))) == 40
