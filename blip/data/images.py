"""Image decoding: from encoded bytes to upright RGB images. Training, CapFilt, evaluation and reports all use it."""

import io
import warnings
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageCms

from blip.shards.sample import BadSample

IMAGE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM")
"""Formats that are decoded. No data set needs Pillow's other decoders, and some start programs."""

MAX_PIXELS = 2**25
"""Default limit of an image's pixels, 33.5 million: decoding takes up to 16 bytes a pixel, 540 MB."""

MOST_PIXELS = 178_956_970
"""The largest limit that can be set, Pillow's own."""

MAX_SIDE = 65535
"""Largest side in pixels; more is a mistake or an attack."""

PIXELS_A_BYTE = 256
"""Most pixels in a byte of a baseline JPEG: each block takes at least two bits, and 10 blocks have at most 512 pixels.
"""

STRIP_PIXELS = 2**20
"""Pixels of deep grey that are scaled at a time, to bound the memory of the float arithmetic."""

WHITE_IS_ZERO = 0
"""TIFF's photometric interpretation of negatives."""

# Pixels are usable even if metadata is damaged, and `limit_size` checks their number.
warnings.filterwarnings("ignore", module=r"PIL\.")
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)


@dataclass(frozen=True)
class Decoded:
    """A decoded image, and facts from its header."""

    image: Image.Image
    """RGB, upright, on white; the first frame."""
    size: tuple[int, int]
    """Encoded width and height, upright; `image` is smaller if a JPEG was too large to decode at full size."""
    mode: str
    """Pillow's mode of the encoded image: `RGB`, `L`, `P`, `CMYK`, `I;16` ..."""
    animated: bool


def decode(data: bytes, max_pixels: int = MAX_PIXELS) -> Image.Image:
    """Returns the RGB image in encoded bytes as viewers show it. Raises BadSample, also for more than `max_pixels`
    pixels.

    Transparent pixels are composited on white, the EXIF orientation is applied, deep greys are scaled to 8 bits,
    colours with an embedded ICC profile are converted to sRGB, and an animation's first frame is used. A baseline JPEG
    above the limit is decoded at 1/2, 1/4 or 1/8 of its sides.
    """
    return decode_with_facts(data, max_pixels).image


def decode_with_facts(data: bytes, max_pixels: int = MAX_PIXELS) -> Decoded:
    """As `decode`, with the header's facts. Raises BadSample for any exception of Pillow."""
    try:
        opened = Image.open(io.BytesIO(data), formats=IMAGE_FORMATS)
    except Image.UnidentifiedImageError:
        raise BadSample("image is cut short" if is_cut_webp(data) else "image cannot be decoded") from None
    except Image.DecompressionBombError:
        raise BadSample("image has too many pixels") from None
    except Exception as e:
        raise to_bad_sample(data, e) from e
    with opened:
        encoded = opened.size
        mode = opened.mode
        limit_size(opened, len(data), max_pixels)
        try:
            filled = opened.tile[0].extents if opened.format == "GIF" else None
            opened.load()
            correct_transparency(opened, data)
            orientation = orientation_of(opened)
            image = upright(beside_white(to_rgb(opened), filled), orientation)
        except Exception as e:
            raise to_bad_sample(data, e) from e
        width, height = encoded
        size = (height, width) if orientation >= 5 else (width, height)
        return Decoded(image, size, mode, is_animated(opened))


def to_upright_rgb(image: Image.Image) -> Image.Image:
    """As `decode`, for a Pillow image of any size. Raises BadSample if its pixels cannot be read."""
    try:
        return upright(to_rgb(image), orientation_of(image))
    except Exception as e:
        raise to_bad_sample(b"", e) from e


def to_bad_sample(data: bytes, error: Exception) -> BadSample:
    """Returns the reason for an exception of Pillow; unusual exceptions are named by type."""
    if "truncated" in str(error) or is_cut_webp(data):
        return BadSample("image is cut short")
    if isinstance(error, MemoryError):
        return BadSample("image takes too much memory")
    expected = isinstance(error, OSError | ValueError | SyntaxError | EOFError)
    return BadSample("image is broken" if expected else f"image is broken ({type(error).__name__})")


def is_cut_webp(data: bytes) -> bool:
    """Returns whether a WebP file has fewer bytes than it declares; the decoder's error does not distinguish this."""
    return data[:4] == b"RIFF" and data[8:12] == b"WEBP" and len(data) < 8 + int.from_bytes(data[4:8], "little")


def limit_size(opened: Image.Image, size: int, max_pixels: int) -> None:
    """Sets up a large baseline JPEG to be decoded smaller. Raises BadSample if an image is too large and cannot be."""
    width, height = opened.size
    if max(width, height) > MAX_SIDE:
        raise BadSample("image has a side of more than 65535 pixels")
    if width * height <= max_pixels:
        return
    # Pillow decodes a progressive JPEG at full size before it scales it.
    if opened.format not in ("JPEG", "MPO") or "progressive" in opened.info:
        raise BadSample("image has too many pixels")
    if width * height > PIXELS_A_BYTE * size:
        raise BadSample("image is cut short")
    for divisor in (2, 4, 8):
        if -(-width // divisor) * -(-height // divisor) <= max_pixels:
            opened.draft(None, (width // divisor, height // divisor))  # pyright: ignore[reportArgumentType]
            return
    raise BadSample("image has too many pixels")


def correct_transparency(opened: Image.Image, data: bytes) -> None:
    """Scales a PNG's transparent colour to the depth of Pillow's pixels; Pillow leaves it in the file's depth."""
    colour = opened.info.get("transparency")
    if opened.format != "PNG" or colour is None:
        return
    depth = data[24]
    if opened.mode == "L" and depth < 8:
        opened.info["transparency"] = colour * 255 // (2**depth - 1)
    if opened.mode == "RGB" and depth == 16:
        opened.info["transparency"] = tuple(value >> 8 for value in colour)


def to_rgb(image: Image.Image) -> Image.Image:
    """Returns the image in 8-bit RGB, transparent pixels on white."""
    if image.mode in ("I", "F") or image.mode.startswith("I;16"):
        return deep_grey(image)
    if image.mode == "La":  # TIFF's premultiplied grey, which Pillow converts only to LA
        image = image.convert("LA")
    if image.has_transparency_data:
        return on_white(image)
    return managed(image, image.info.get("icc_profile"))


def on_white(image: Image.Image) -> Image.Image:
    """Composites an image with any kind of transparency on white."""
    rgba = image if image.mode == "RGBA" else image.convert("RGBA")
    alpha = rgba.getchannel("A")
    colours = managed(rgba.convert("RGB"), image.info.get("icc_profile"))
    if alpha.getextrema() == (255, 255):
        return colours
    page = Image.new("RGB", image.size, "white")
    page.paste(colours, mask=alpha)
    return page


def beside_white(image: Image.Image, filled: tuple[int, int, int, int] | None) -> Image.Image:
    """Fills with white what the frame of a GIF does not cover."""
    if filled in (None, (0, 0, *image.size)):
        return image
    page = Image.new("RGB", image.size, "white")
    page.paste(image.crop(filled), filled)
    return page


def managed(image: Image.Image, profile: bytes | None) -> Image.Image:
    """Returns the image in RGB, converted to sRGB if its profile differs. An invalid profile is ignored."""
    if profile and image.mode in ("RGB", "L", "CMYK"):
        try:
            transform = transform_of(profile, image.mode)
        except (ImageCms.PyCMSError, OSError):
            transform = None
        if transform is not None:
            return transformed(image, transform)
    return image.convert("RGB")


def transformed(image: Image.Image, transform: ImageCms.ImageCmsTransform) -> Image.Image:
    converted = ImageCms.applyTransform(image, transform)
    assert converted is not None
    return converted


@lru_cache(maxsize=32)
def transform_of(profile: bytes, mode: str) -> ImageCms.ImageCmsTransform | None:
    """Returns the transform from a profile to sRGB; None if it has no visible effect, as with the many variants of
    sRGB."""
    source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
    transform = ImageCms.buildTransform(
        source, ImageCms.createProfile("sRGB"), mode, "RGB", ImageCms.Intent.RELATIVE_COLORIMETRIC
    )
    if mode not in ("RGB", "L"):
        return transform
    levels = np.arange(0, 256, 17, dtype=np.uint8)
    probe = np.stack(np.meshgrid(levels, levels, levels), -1).reshape(16, 256, 3) if mode == "RGB" else levels[None]
    before = Image.fromarray(probe)
    change = np.asarray(transformed(before, transform), dtype=np.int16) - np.asarray(
        before.convert("RGB"), dtype=np.int16
    )
    return None if np.abs(change).max() <= MIN_VISIBLE_CHANGE else transform


MIN_VISIBLE_CHANGE = 3
"""Levels of 255 that a profile must change some colour by to count as different from sRGB."""


def deep_grey(image: Image.Image) -> Image.Image:
    """Scales grey of more than 8 bits to 8: by the file's depth or, if that is unknown, by the range of values."""
    values = np.asarray(image)
    low, high = grey_range(image, values)
    negative = tiff_tag(image, 262) == WHITE_IS_ZERO
    out = np.empty(values.shape, np.uint8)
    rows = max(1, STRIP_PIXELS // image.width)
    for start in range(0, len(values), rows):
        strip = slice(start, start + rows)
        share = (np.nan_to_num(values[strip].astype(np.float64), nan=low, posinf=high, neginf=low) - low) / (high - low)
        out[strip] = np.rint(255 * np.clip(1 - share if negative else share, 0, 1))
    grey = Image.fromarray(out)
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        page = Image.new("RGB", image.size, "white")
        page.paste(
            grey.convert("RGB"), mask=Image.fromarray(np.where(values == transparent, np.uint8(0), np.uint8(255)))
        )
        return page
    return grey.convert("RGB")


def grey_range(image: Image.Image, values: NDArray[np.generic]) -> tuple[float, float]:
    """Returns the values of black and white.

    16 bits (and TIFF's 12) range from 0 to the largest number. 32-bit integers and floats declare no range: 0 to 1 is
    assumed if all values are in it (floats), 0 to 255 if all are in it, 0 to 65535 likewise (integers), and otherwise
    the values' own range.
    """
    if image.mode.startswith("I;16"):
        bits = tiff_tag(image, 258)
        return 0.0, 2.0 ** (bits[0] if isinstance(bits, tuple) else 16) - 1
    if image.format == "PPM" and image.mode == "I":
        return 0.0, 65535.0
    finite = values[np.isfinite(values)] if image.mode == "F" else values
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    for white in (1.0, 255.0) if image.mode == "F" else (255.0, 65535.0):
        if low >= 0 and high <= white:
            return 0.0, white
    return low, high if high > low else low + 1


def tiff_tag(image: Image.Image, number: int) -> object:
    """Returns a tag of a TIFF's first page; None for other formats."""
    tags = getattr(image, "tag_v2", None)
    return tags.get(number) if tags is not None else None


def orientation_of(image: Image.Image) -> int:
    """Returns the EXIF orientation, 1 to 8; 1 (upright) if it is missing or invalid."""
    try:
        value = image.getexif().get(0x0112, 1)
    except Exception:  # damaged EXIF raises exceptions of any type; viewers then ignore the orientation
        return 1
    return value if isinstance(value, int) and 1 <= value <= 8 else 1


TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""The transpose that makes an image of an EXIF orientation upright."""


def upright(image: Image.Image, orientation: int) -> Image.Image:
    return image.transpose(TURNS[orientation]) if orientation in TURNS else image


def is_animated(opened: Image.Image) -> bool:
    """Returns whether there are further frames, readable or not; not for MPO, a photograph with a preview."""
    if opened.format == "MPO":
        return False
    try:
        return getattr(opened, "is_animated", False)
    except Exception:  # Pillow reads a GIF's second frame here, and may raise exceptions of any type
        return True
