"""Images of every kind are decoded as viewers show them, or rejected with a reason."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageCms, TiffImagePlugin

from blip.capfilt.quality import QualityConfig, inspect
from blip.data.images import MAX_PIXELS, decode, decode_with_facts
from blip.data.transforms import TransformConfig
from blip.evaluation.job import EvaluateConfig, evaluation_view
from blip.shards.sample import BadSample, Sample

RED, GREEN, BLUE, GREY, BLACK, WHITE = (
    (255, 0, 0),
    (0, 255, 0),
    (0, 0, 255),
    (128, 128, 128),
    (0, 0, 0),
    (255, 255, 255),
)
BLOCK = 16
"""Pixels of a side of a block: JPEG's chroma blocks, so that colours do not mix."""


def blocks(*rows: tuple[tuple[int, ...], ...]) -> np.ndarray:
    """Rows of colours as blocks of pixels `(H, W, C)`."""
    return np.array(rows, np.uint8).repeat(BLOCK, 0).repeat(BLOCK, 1)


SCENE = blocks((RED, GREEN, BLUE), (GREY, BLACK, WHITE))
"""Two rows of three blocks; no turn or mirror image of it looks the same."""
PALE = SCENE // 2 + 64
"""Colours that LAB of 8 bits holds exactly enough."""
GREYS = blocks((BLACK, (85,) * 3, (170,) * 3, WHITE))
HOLED = blocks((WHITE, GREEN, BLUE), (GREY, BLACK, WHITE))
"""The scene, its red block transparent, on white."""


def encoded(image: Image.Image, format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, format, **options)
    return file.getvalue()


def png(kind: int, depth: int, width: int, height: int, rows: list[bytes], **chunks: bytes) -> bytes:
    """A PNG file by its parts, of kinds and depths that Pillow does not write."""

    def chunk(name: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + name + content + struct.pack(">I", zlib.crc32(name + content))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, depth, kind, 0, 0, 0))
    extra = b"".join(chunk(name.encode(), content) for name, content in chunks.items())
    pixels = chunk(b"IDAT", zlib.compress(b"".join(b"\0" + row for row in rows)))
    return b"\x89PNG\r\n\x1a\n" + header + extra + pixels + chunk(b"IEND", b"")


def big_endian(values: np.ndarray) -> list[bytes]:
    return [row.astype(">u2").tobytes() for row in values.reshape(len(values), -1)]


def with_alpha(rgb: np.ndarray, hidden: tuple[int, ...] = RED, alpha: int = 0) -> Image.Image:
    """RGBA in which one colour is transparent; rubbish stands below it."""
    opacity = np.where((rgb == hidden).all(-1), alpha, 255).astype(np.uint8)
    return Image.fromarray(np.dstack([rgb, opacity]))


def paletted() -> Image.Image:
    return Image.fromarray(SCENE).quantize(6, dither=Image.Dither.NONE)


def index_of(image: Image.Image, colour: tuple[int, ...]) -> int:
    palette = np.array(image.getpalette()).reshape(-1, 3)
    return int((palette == colour).all(1).argmax())


def palette_by_bytes() -> bytes:
    image = paletted()
    opacity = bytearray([255] * 6)
    opacity[index_of(image, RED)] = 0
    return encoded(image, "PNG", transparency=bytes(opacity))


def lab() -> bytes:
    transform = ImageCms.buildTransform(ImageCms.createProfile("sRGB"), ImageCms.createProfile("LAB"), "RGB", "LAB")
    image = ImageCms.applyTransform(Image.fromarray(PALE), transform)
    assert image is not None
    return encoded(image, "TIFF")


def tiff(values: np.ndarray, mode: str = "", tags: dict[int, int] | None = None) -> bytes:
    info = TiffImagePlugin.ImageFileDirectory_v2()
    for number, value in (tags or {}).items():
        info[number] = value
    return encoded(
        Image.fromarray(values) if mode == "" else Image.frombytes(mode, values.shape[::-1], values.tobytes()),
        "TIFF",
        tiffinfo=info,
    )


def turned(orientation: int, format: str) -> bytes:
    """The scene, stored so that the EXIF orientation brings it upright."""
    inverse = {
        1: None,
        2: Image.Transpose.FLIP_LEFT_RIGHT,
        3: Image.Transpose.ROTATE_180,
        4: Image.Transpose.FLIP_TOP_BOTTOM,
        5: Image.Transpose.TRANSPOSE,
        6: Image.Transpose.ROTATE_90,
        7: Image.Transpose.TRANSVERSE,
        8: Image.Transpose.ROTATE_270,
    }[orientation]
    image = Image.fromarray(SCENE)
    exif = Image.Exif()
    exif[0x0112] = orientation
    options = {"WEBP": {"lossless": True}, "JPEG": {"subsampling": 0}}.get(format, {})
    return encoded(image if inverse is None else image.transpose(inverse), format, exif=exif, **options)


def frames(format: str, **options: object) -> bytes:
    first, second = Image.fromarray(SCENE), Image.new("RGB", SCENE.shape[1::-1], "black")
    return encoded(first, format, save_all=True, append_images=[second], **options)


def swapped_profile() -> bytes:
    """An ICC profile whose red is sRGB's green, and the reverse."""
    profile = bytearray(ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes())
    count = int.from_bytes(profile[128:132])
    places = {bytes(profile[132 + 12 * i : 136 + 12 * i]): 132 + 12 * i for i in range(count)}
    red, green = places[b"rXYZ"], places[b"gXYZ"]
    profile[red + 4 : red + 12], profile[green + 4 : green + 12] = (
        profile[green + 4 : green + 12],
        profile[red + 4 : red + 12],
    )
    return bytes(profile)


SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
RAMP = np.array([0, 85, 170, 255]).repeat(BLOCK)[None].repeat(BLOCK, 0)
"""The greys as numbers `(H, W)`."""


def gif_in_a_part() -> bytes:
    """A scene of six blocks in the upper left of a larger screen."""
    data = bytearray(encoded(paletted(), "GIF"))
    data[6:10] = struct.pack("<HH", 4 * BLOCK, 3 * BLOCK)
    return bytes(data)


KINDS: dict[str, tuple[Callable[[], bytes], np.ndarray, int]] = {
    "RGB png": (lambda: encoded(Image.fromarray(SCENE), "PNG"), SCENE, 0),
    "RGB jpeg": (lambda: encoded(Image.fromarray(SCENE), "JPEG", quality=95, subsampling=0), SCENE, 3),
    "RGB bmp": (lambda: encoded(Image.fromarray(SCENE), "BMP"), SCENE, 0),
    "RGB webp": (lambda: encoded(Image.fromarray(SCENE), "WEBP", lossless=True), SCENE, 0),
    "RGB tiff": (lambda: encoded(Image.fromarray(SCENE), "TIFF"), SCENE, 0),
    "RGB avif": (lambda: encoded(Image.fromarray(SCENE), "AVIF", quality=100, subsampling="4:4:4"), SCENE, 4),
    "RGB jpeg 2000": (lambda: encoded(Image.fromarray(SCENE), "JPEG2000"), SCENE, 0),
    "RGB ppm": (lambda: encoded(Image.fromarray(SCENE), "PPM"), SCENE, 0),
    "RGB png of 16 bits": (lambda: png(2, 16, 48, 32, big_endian(SCENE.astype(int) * 257)), SCENE, 0),
    "RGB with a transparent colour": (lambda: encoded(Image.fromarray(SCENE), "PNG", transparency=RED), HOLED, 0),
    "RGB of 16 bits with one": (
        lambda: png(2, 16, 48, 32, big_endian(SCENE.astype(int) * 257), tRNS=struct.pack(">3H", 65535, 0, 0)),
        HOLED,
        0,
    ),
    "RGBA": (lambda: encoded(with_alpha(SCENE), "PNG"), HOLED, 0),
    "RGBA that is opaque": (lambda: encoded(with_alpha(SCENE, alpha=255), "PNG"), SCENE, 0),
    "RGBA half transparent": (
        lambda: encoded(with_alpha(SCENE, hidden=BLACK, alpha=128), "PNG"),
        blocks((RED, GREEN, BLUE), (GREY, (127,) * 3, WHITE)),
        1,
    ),
    "RGBA of 16 bits": (
        lambda: png(6, 16, 48, 32, big_endian(np.asarray(with_alpha(SCENE)).astype(int) * 257)),
        HOLED,
        0,
    ),
    "RGBA webp": (lambda: encoded(with_alpha(SCENE), "WEBP", lossless=True, exact=True), HOLED, 0),
    "RGBA tiff": (lambda: encoded(with_alpha(SCENE), "TIFF"), HOLED, 0),
    "LA": (
        lambda: encoded(with_alpha(GREYS, BLACK).convert("LA"), "PNG"),
        blocks((WHITE, (85,) * 3, (170,) * 3, WHITE)),
        0,
    ),
    "LA of 16 bits": (
        lambda: png(4, 16, 64, 16, big_endian(np.stack([RAMP * 257, np.where(RAMP == 0, 0, 65535)], -1))),
        blocks((WHITE, (85,) * 3, (170,) * 3, WHITE)),
        0,
    ),
    "P": (lambda: encoded(paletted(), "PNG"), SCENE, 0),
    "P with a transparent index": (
        lambda: encoded(paletted(), "PNG", transparency=index_of(paletted(), RED)),
        HOLED,
        0,
    ),
    "P with transparent bytes": (palette_by_bytes, HOLED, 0),
    "gif": (lambda: encoded(paletted(), "GIF"), SCENE, 0),
    "gif with a transparent index": (
        lambda: encoded(paletted(), "GIF", transparency=index_of(paletted(), RED)),
        HOLED,
        0,
    ),
    "gif in a part of its screen": (
        gif_in_a_part,
        blocks((RED, GREEN, BLUE, WHITE), (GREY, BLACK, WHITE, WHITE), (WHITE,) * 4),
        0,
    ),
    "L": (lambda: encoded(Image.fromarray(GREYS).convert("L"), "PNG"), GREYS, 0),
    "L of 2 bits": (lambda: png(0, 2, 4, 1, [bytes([0b00011011])]), GREYS[::BLOCK, ::BLOCK], 0),
    "L of 2 bits with a transparent grey": (
        lambda: png(0, 2, 4, 1, [bytes([0b00011011])], tRNS=struct.pack(">H", 0)),
        np.array([[WHITE, (85,) * 3, (170,) * 3, WHITE]]),
        0,
    ),
    "L of 4 bits with a transparent grey": (
        lambda: png(0, 4, 4, 1, [bytes([0x05, 0xAF])], tRNS=struct.pack(">H", 5)),
        np.array([[BLACK, WHITE, (170,) * 3, WHITE]]),
        0,
    ),
    "1": (lambda: encoded(Image.fromarray(RAMP > 100), "PNG"), blocks((BLACK, BLACK, WHITE, WHITE)), 0),
    "1 with a transparent grey": (
        lambda: png(0, 1, 8, 1, [bytes([0b00001111])], tRNS=b"\0\0"),
        np.array([[WHITE] * 8]),
        0,
    ),
    "I;16 png": (lambda: encoded(Image.fromarray((RAMP * 257).astype(np.uint16)), "PNG"), GREYS, 0),
    "I;16 with a transparent grey": (
        lambda: png(0, 16, 64, 16, big_endian(RAMP * 257), tRNS=b"\0\0"),
        blocks((WHITE, (85,) * 3, (170,) * 3, WHITE)),
        0,
    ),
    "I;16 tiff": (lambda: tiff((RAMP * 257).astype(np.uint16)), GREYS, 0),
    "I;16B tiff": (lambda: tiff((RAMP * 257).astype(">u2"), "I;16B"), GREYS, 0),
    "I ppm": (lambda: encoded(Image.fromarray((RAMP * 257).astype(np.int32)), "PPM"), GREYS, 0),
    "I tiff of 16 bits": (lambda: tiff((RAMP * 257).astype(np.int32)), GREYS, 0),
    "I tiff of 8 bits": (lambda: tiff(RAMP.astype(np.int32)), GREYS, 0),
    "I tiff of large numbers": (lambda: tiff((RAMP * 1_000_003 - 5).astype(np.int32)), GREYS, 0),
    "F tiff of shares": (lambda: tiff((RAMP / 255).astype(np.float32)), GREYS, 0),
    "F tiff of 8 bits": (lambda: tiff(RAMP.astype(np.float32)), GREYS, 0),
    "F tiff of any numbers": (lambda: tiff((RAMP * 33.3 - 1000).astype(np.float32)), GREYS, 0),
    "F tiff with gaps": (
        lambda: tiff(np.where(RAMP == 85, np.nan, RAMP).astype(np.float32), ""),
        blocks((BLACK, BLACK, (170,) * 3, WHITE)),
        0,
    ),
    "CMYK jpeg": (lambda: encoded(Image.fromarray(SCENE).convert("CMYK"), "JPEG", quality=98, subsampling=0), SCENE, 6),
    "CMYK tiff": (lambda: encoded(Image.fromarray(SCENE).convert("CMYK"), "TIFF"), SCENE, 0),
    "LAB tiff": (lab, PALE, 3),
    "YCbCr tiff": (lambda: encoded(Image.fromarray(SCENE).convert("YCbCr"), "TIFF", compression="tiff_lzw"), SCENE, 2),
    "animated gif": (lambda: frames("GIF"), SCENE, 0),
    "animated webp": (lambda: frames("WEBP", lossless=True), SCENE, 0),
    "animated png": (lambda: frames("PNG"), SCENE, 0),
    "tiff of two pages": (lambda: frames("TIFF"), SCENE, 0),
    "MPO": (lambda: frames("MPO", quality=95, subsampling=0), SCENE, 3),
    "sRGB profile": (lambda: encoded(Image.fromarray(SCENE), "PNG", icc_profile=SRGB), SCENE, 0),
    "another profile": (
        lambda: encoded(Image.fromarray(SCENE), "PNG", icc_profile=swapped_profile()),
        blocks((GREEN, RED, BLUE), (GREY, BLACK, WHITE)),
        3,
    ),
    "another profile, RGBA": (
        lambda: encoded(with_alpha(SCENE), "PNG", icc_profile=swapped_profile()),
        blocks((WHITE, RED, BLUE), (GREY, BLACK, WHITE)),
        3,
    ),
    "a broken profile": (lambda: encoded(Image.fromarray(SCENE), "PNG", icc_profile=b"no profile"), SCENE, 0),
    "a profile of other colours": (
        lambda: encoded(Image.fromarray(SCENE).convert("CMYK"), "TIFF", icc_profile=SRGB),
        SCENE,
        0,
    ),
    **{
        f"orientation {number}, {format}": (
            lambda number=number, format=format: turned(number, format),
            SCENE,
            3 if format == "JPEG" else 0,
        )
        for number in range(1, 9)
        for format in ("JPEG", "PNG", "WEBP", "TIFF")
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_it_looks_as_people_see_it(kind: str):
    make, seen, tolerance = KINDS[kind]
    image = decode(make())
    assert image.mode == "RGB"
    ours = np.asarray(image, dtype=int)
    assert ours.shape == seen.shape
    assert abs(ours - seen).max() <= tolerance, f"differs by {abs(ours - seen).max()}"


def test_ordinary_images_have_the_bytes_of_the_decoder():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (61, 47, 3), dtype=np.uint8))
    for data in (
        encoded(noise, "JPEG"),
        encoded(noise, "PNG"),
        encoded(noise, "WEBP"),
        encoded(noise.convert("L"), "JPEG"),
    ):
        assert decode(data).tobytes() == Image.open(io.BytesIO(data)).convert("RGB").tobytes()


@pytest.mark.parametrize(("orientation", "size"), [(1, (48, 32)), (3, (48, 32)), (6, (48, 32)), (8, (48, 32))])
@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
def test_the_size_is_that_of_the_upright_image(orientation: int, size: tuple[int, int], format: str):
    found = decode_with_facts(turned(orientation, format))
    assert found.size == found.image.size == size


def test_broken_exif_leaves_the_image_as_it_is():
    data = encoded(
        Image.fromarray(SCENE), "JPEG", exif=b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\xff\xff\xff\xff\0\0\0\0"
    )
    assert np.asarray(decode(data)).shape == SCENE.shape


def test_later_frames_do_not_matter_however_they_are_cut():
    noise = [Image.fromarray(np.random.default_rng(i).integers(0, 256, (24, 24), dtype=np.uint8)) for i in range(3)]
    gif = encoded(noise[0], "GIF", save_all=True, append_images=noise[1:])
    first = len(encoded(noise[0], "GIF"))
    seen = decode(gif).tobytes()
    for length in range(first + 10, len(gif), 7):
        found = decode_with_facts(gif[:length])
        assert found.image.tobytes() == seen
        assert found.animated


def test_whatever_pillow_raises_is_a_bad_sample():
    rng = np.random.default_rng(0)
    reasons = set()
    for whole in [make() for make, *_ in KINDS.values()]:
        for _ in range(12):
            data = bytearray(whole[: int(rng.integers(len(whole) // 3, len(whole) + 1))])
            for place in rng.integers(0, len(data), 4):
                data[place] = rng.integers(256)
            try:
                assert decode_with_facts(bytes(data), 10**6).image.mode == "RGB"
            except BadSample as error:
                reasons.add(str(error))
    assert {"image is cut short", "image is broken", "image cannot be decoded"} <= reasons
    assert all(reason.startswith("image ") for reason in reasons)


def declared(width: int, height: int, kind: str) -> bytes:
    """A small file that declares a large image."""
    small = Image.new("RGB", (16, 16))
    match kind:
        case "png":
            return png(2, 8, width, height, [bytes(48)])
        case "gif":
            data = bytearray(encoded(small, "GIF"))
            data[6:10] = struct.pack("<HH", width, height)
            return bytes(data)
        case _:
            data = bytearray(encoded(small, "JPEG", progressive=kind == "progressive"))
            start = data.index(b"\xff\xc2" if kind == "progressive" else b"\xff\xc0")
            data[start + 5 : start + 9] = struct.pack(">HH", height, width)
            return bytes(data)


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (declared(65500, 2700, "jpeg"), "image is cut short"),
        (declared(65500, 2700, "progressive"), "image has too many pixels"),
        (declared(20000, 20000, "png"), "image has too many pixels"),
        (declared(6000, 6000, "png"), "image has too many pixels"),
        (declared(170_000_000, 1, "png"), "image has a side of more than 65535 pixels"),
        (declared(65000, 65000, "gif"), "image has too many pixels"),
    ],
    ids=["jpeg", "progressive", "png", "small png", "long", "gif"],
)
def test_bombs_take_no_memory(data: bytes, reason: str, tmp_path: Path):
    (tmp_path / "bomb").write_bytes(data)
    script = (
        "import resource, sys; from pathlib import Path\n"
        "from blip.data.images import decode; from blip.shards.sample import BadSample\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: decode(Path(sys.argv[1]).read_bytes())\n"
        "except BadSample as e: print(e)\n"
        "print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "bomb")], capture_output=True, text=True, check=True
    )
    said, grown = done.stdout.splitlines()
    assert said == reason
    assert int(grown) < 100_000, "KiB"


def test_large_photographs_are_decoded_smaller_and_known_by_their_size():
    photo = Image.effect_noise((900, 600), 60).convert("RGB")
    found = decode_with_facts(encoded(photo, "JPEG"), 200_000)
    assert (found.image.size, found.size) == ((450, 300), (900, 600))
    whole = decode(encoded(photo, "JPEG"))
    assert (
        abs(np.asarray(whole.resize((450, 300), Image.Resampling.BOX), dtype=int) - np.asarray(found.image)).mean() < 5
    )
    with pytest.raises(BadSample, match="too many pixels"):
        decode(encoded(photo, "JPEG", progressive=True), 200_000)
    with pytest.raises(BadSample, match="too many pixels"):
        decode(encoded(photo, "JPEG"), 5_000)
    assert decode(encoded(photo, "PNG"), 900 * 600).size == (900, 600)
    assert MAX_PIXELS < 2**26


def test_cut_files_are_told_from_broken_ones():
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 48, 3), dtype=np.uint8))
    for format in ("PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF"):
        with pytest.raises(BadSample) as error:
            decode(encoded(noise, format)[:-200])
        assert str(error.value) == "image is cut short", format


def test_every_path_knows_the_limit_of_pixels():
    sample = Sample("a", [encoded(Image.fromarray(SCENE), "PNG")], ["a text"])
    pixels = SCENE.shape[0] * SCENE.shape[1]
    assert evaluation_view(sample.images[0], 8, pixels).shape == (3, 8, 8)
    with pytest.raises(BadSample, match="too many pixels"):
        evaluation_view(sample.images[0], 8, pixels - 1)
    assert inspect(sample.images[0], QualityConfig(max_pixels=pixels - 1))[0].faults == ["too_large"]
    for kind in (EvaluateConfig, QualityConfig, TransformConfig):
        assert kind().max_pixels == MAX_PIXELS
