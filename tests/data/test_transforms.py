import io
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from blip.data.images import decode
from blip.data.transforms import MEAN, STD, TransformConfig, eval_transform, normalise, random_box, train_transform
from blip.shards.sample import BadSample

GOLDEN = Path(os.environ.get("BLIP_GOLDEN", "tests/golden"))
PHOTO = GOLDEN / "image.png"
PLAIN = TransformConfig(size=32, min_scale=1, flip=False, augment="none")


@pytest.fixture
def photo() -> Image.Image:
    return decode(PHOTO.read_bytes())


def test_the_evaluation_transform_equals_the_reference(photo):
    expected = load_file(GOLDEN / "misc.io.safetensors")["pixels"]
    pixels = normalise(eval_transform(expected.shape[1])(photo))
    torch.testing.assert_close(pixels, expected, atol=1e-5, rtol=0)


def test_normalisation_is_by_channel_and_takes_frames():
    images = torch.zeros(2, 3, 3, 4, 4, dtype=torch.uint8)
    images[1] = 255
    normal = normalise(images)
    assert normal.shape == images.shape
    assert normal[0, 0, :, 0, 0].tolist() == pytest.approx([-m / s for m, s in zip(MEAN, STD, strict=True)])
    assert normal[1, 2, :, 3, 3].tolist() == pytest.approx(
        [(1 - m) / s for m, s in zip(MEAN, STD, strict=True)], rel=1e-5
    )


def test_an_image_of_the_right_size_passes_unchanged(photo):
    small = photo.resize((32, 32))
    for transform in (train_transform(PLAIN, np.random.default_rng(0)), eval_transform(32)):
        tensor = transform(small)
        assert tensor.dtype == torch.uint8
        assert (tensor.permute(1, 2, 0).numpy() == np.asarray(small)).all()


def test_half_of_the_images_are_mirrored(photo):
    whole = eval_transform(32)(photo)
    cfg = PLAIN.model_copy(update={"flip": True})
    results = [train_transform(cfg, np.random.default_rng(seed))(photo) for seed in range(200)]
    mirrored = sum(torch.equal(r, whole.flip(2)) for r in results)
    assert mirrored + sum(torch.equal(r, whole) for r in results) == 200
    assert 70 < mirrored < 130


def test_the_generator_alone_decides(photo):
    cfg = TransformConfig(size=24)
    first, again, other = (train_transform(cfg, np.random.default_rng(seed))(photo) for seed in (1, 1, 2))
    assert first.shape == (3, 24, 24)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_random_crops_keep_the_share_and_the_aspect_ratio():
    image, rng = Image.new("RGB", (100, 80)), np.random.default_rng(0)
    shares = []
    for _ in range(300):
        left, top, right, bottom = random_box(image, 0.2, rng)
        assert 0 <= left < right <= 100
        assert 0 <= top < bottom <= 80
        assert 0.72 < (right - left) / (bottom - top) < 1.4
        shares.append((right - left) * (bottom - top) / 8000)
    assert min(shares) < 0.25
    assert max(shares) > 0.8


def test_a_crop_of_a_long_image_falls_back_to_its_middle():
    assert random_box(Image.new("RGB", (1000, 30)), 0.9, np.random.default_rng(0)) == (480, 0, 520, 30)
    assert random_box(Image.new("RGB", (30, 1000)), 0.9, np.random.default_rng(0)) == (0, 480, 30, 520)


def test_bad_images_name_their_reason():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    png, jpeg = io.BytesIO(), io.BytesIO()
    picture.save(png, "png")
    picture.save(jpeg, "jpeg")
    whole = png.getvalue()
    for data, reason in (
        (b"", "image cannot be decoded"),
        (b"<html>not found</html>", "image cannot be decoded"),
        (whole[: len(whole) // 2], "image is cut short"),
        (jpeg.getvalue()[:-200], "image is cut short"),
        (whole[:60] + b"garbage" + whole[67:], "image is broken"),
    ):
        with pytest.raises(BadSample) as error:
            decode(data)
        assert str(error.value) == reason


def test_programs_are_not_started_for_odd_formats():
    with pytest.raises(BadSample, match="cannot be decoded"):
        decode(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n")
