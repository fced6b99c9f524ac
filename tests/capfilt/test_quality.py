"""Faults of images and texts are found and named."""

from io import BytesIO

import pytest
from PIL import Image
from tiny_models import picture

from blip.capfilt.pairs import CarriedConfig, make_pair
from blip.capfilt.quality import QualityConfig, inspect, perceptual_hash, text_faults
from blip.data.transforms import eval_transform
from blip.shards.layout import unpack
from blip.shards.manifest import Layout
from blip.zoo.contract import View

VIEW = View("16 pixels", eval_transform(16))
CFG = QualityConfig(min_side=16, max_pixels=80_000, max_aspect=3, max_characters=20)


def animated() -> bytes:
    file = BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(file, "WEBP", save_all=True, append_images=frames[1:])
    return file.getvalue()


def cut_animation() -> bytes:
    """A GIF whose second frame ends in its header."""
    file = BytesIO()
    frames = [Image.new("RGB", (32, 32), colour) for colour in ("red", "blue")]
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:])
    data = file.getvalue()
    return data[: data.rindex(b"\x2c") + 5]


def rotated(size: tuple[int, int]) -> bytes:
    """A JPEG that EXIF turns by a quarter."""
    file, exif = BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", size).save(file, "JPEG", exif=exif)
    return file.getvalue()


def bomb() -> bytes:
    """A JPEG of a few bytes that declares 65535 x 256 pixels."""
    data = bytearray(picture(0, (64, 64), format="JPEG"))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = b"\xff\xff\x01\x00"
    return bytes(data)


def grey() -> bytes:
    file = BytesIO()
    Image.new("L", (32, 32), 7).save(file, "PNG")
    return file.getvalue()


@pytest.mark.parametrize(
    ("data", "faults"),
    [
        (picture(0, (32, 32)), []),
        (picture(0, (15, 32)), ["small"]),
        (picture(0, (16, 49)), ["elongated"]),
        (picture(0, (16, 48)), []),
        (grey(), ["not_rgb"]),
        (animated(), ["animated"]),
        (cut_animation(), ["not_rgb", "animated"]),
        (rotated((32, 64)), []),
        (rotated((20, 64)), ["elongated"]),
        (picture(0, (300, 300)), ["too_large"]),
        (bomb(), ["truncated"]),
        (picture(0, (64, 64), format="JPEG")[:900], ["truncated"]),
        (b"no image", ["undecodable"]),
    ],
)
def test_images(data: bytes, faults: list[str]):
    facts, image = inspect(data, CFG)
    assert facts.faults == faults
    assert (image is None) == (faults in (["truncated"], ["undecodable"], ["too_large"])) == (facts.width == 0)


def test_sizes_are_those_of_the_upright_image():
    facts, image = inspect(rotated((32, 64)), CFG)
    assert image is not None
    assert (facts.width, facts.height) == image.size == (64, 32)


def test_texts():
    assert text_faults("a red square", CFG) == []
    assert text_faults(" \n", CFG) == ["empty"]
    assert text_faults("x" * 21, CFG) == ["long"]


def test_perceptual_hash_changes_little_when_an_image_is_scaled_and_compressed():
    image = Image.open(BytesIO(picture(0, (8, 8)))).resize((256, 256))
    file = BytesIO()
    image.resize((100, 90)).save(file, "JPEG", quality=60)
    again, other = perceptual_hash(Image.open(file)), perceptual_hash(image.transpose(Image.Transpose.ROTATE_90))
    assert (perceptual_hash(image) ^ again).bit_count() <= 4
    assert (perceptual_hash(image) ^ other).bit_count() > 16


def test_perceptual_hash_of_a_known_image():
    # the value that imagehash.phash gives
    assert perceptual_hash(Image.open(BytesIO(picture(0, (32, 32))))) == 0xFF2A51CCF02ABE40


@pytest.mark.parametrize(
    ("members", "texts", "faults"),
    [
        ({"txt": b"a cat"}, ["a cat"], []),
        ({"txt": b"\xff\xfe"}, [""], ["not_utf8"]),
        ({"txt": b"  "}, [""], ["empty"]),
        ({}, [""], ["empty"]),
        ({"json": b'{"texts": ["one", "two"]}'}, ["one", "two"], []),
        ({"json": b"{broken", "txt": b"a cat"}, ["a cat"], []),
        ({"json": b"{broken"}, [""], ["empty"]),
        ({"json": b'{"texts": null}'}, [""], ["empty"]),
        ({"json": b'{"texts": "abc"}'}, ["abc"], []),
        ({"json": b'{"caption": "cut \\ud83d"}'}, ["cut \ufffd"], []),
    ],
)
def test_web_texts(members: dict[str, bytes], texts: list[str], faults: list[str]):
    pair = make_pair(unpack("key", {"png": picture(0), **members}, Layout()), [VIEW], CFG, CarriedConfig(), ())
    assert [text.text for text in pair.texts] == texts
    assert pair.texts[0].faults == faults
    assert pair.views[VIEW.name].shape == (3, 16, 16)


def test_what_is_to_be_dropped_is_not_prepared_and_opt_outs_are_heard():
    members = {
        "png": picture(0),
        "txt": b"a cat",
        "json": b'{"opt_out": true, "license": "cc0", "source": "cc3m", "url": "u"}',
    }
    pair = make_pair(unpack("key", members, Layout()), [VIEW], CFG, CarriedConfig(), ("opted_out",))
    assert pair.facts.faults == ["opted_out"]
    assert not pair.views
    assert pair.carried == {"licence": "cc0", "url": "u", "origin": "cc3m", "opt_out": "True"}
    several = {"0.png": picture(0), "1.png": picture(1), "txt": b"a cat"}
    assert make_pair(unpack("key", several, Layout()), [VIEW], CFG, CarriedConfig(), ()).facts.faults == ["several"]
