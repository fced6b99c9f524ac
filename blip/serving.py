"""A registered model as MLflow serves it: images, and texts or questions, in; captions, answers or scores out.

MLflow calls this module by its name in `MLmodel` (`mlflow.pyfunc.load_model`, `mlflow models serve`).
"""

import base64
import binascii
import os
import urllib.request
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from blip.api import Model, load
from blip.storage import is_web_address

URLS = "BLIP_SERVE_URLS"
"""Environment variable that lets a server fetch images from addresses if it is 1; only who runs the server can."""
MAX_BYTES = 32 << 20
"""Largest image that is fetched from an address, in bytes."""
URL_SAFE = str.maketrans("-_", "+/")
"""The characters of base64 for addresses, and the usual ones."""
SECONDS = 10
"""Longest wait for an address."""


class Service:
    """A model behind MLflow's interface."""

    def __init__(self, model: Model):
        self.model = model

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:  # noqa: ARG002
        """Returns one result for each row of a table with the columns `image` and, unless captions are asked for,
        `text`.

        An image is bytes, base64, a path on the server, or an address where that is allowed. A model of questions
        returns `answer`, one of matching `probability` and `similarity`, one of captions `caption`; a pre-trained one
        matches rows with a text and captions the others, a BLIP-2 answers and captions them. Raises ValueError that
        names the row.
        """
        rows = rows_of(model_input)
        return [self.answer(number, row) for number, row in enumerate(rows)]

    def answer(self, number: int, row: Mapping[str, Any]) -> dict[str, Any]:
        try:
            text = text_of(row.get("text"))
            image = image_bytes(row.get("image"))
            able = self.model.abilities
            if "answer" in able and (text is not None or "caption" not in able):
                return {"answer": self.model.answer(image, needed(text, "a question"))[0]}
            if "match" in able and (text is not None or "caption" not in able):
                (match,) = self.model.match(image, needed(text, "a text to match"))
                return {"probability": match.probability, "similarity": match.similarity}
            return {"caption": self.model.caption(image)[0]}
        except (ValueError, OSError) as error:
            raise ValueError(f"row {number}: {error}") from None


class Served(Service):
    """A service within MLflow's server, which answers a request that is wrong with status 400 and the reason."""

    def predict(self, model_input: Any, params: Mapping[str, Any] | None = None) -> list[dict[str, Any]]:
        from blip.tracking.pyfunc import bad_requests  # MLflow is there where it serves

        with bad_requests():
            return super().predict(model_input, params)


def rows_of(model_input: Any) -> list[dict[str, Any]]:
    """Returns the rows of a pandas table, or of a list of mappings."""
    if hasattr(model_input, "to_dict"):
        return model_input.to_dict(orient="records")
    if isinstance(model_input, Sequence) and all(isinstance(row, Mapping) for row in model_input):
        return [dict(row) for row in model_input]
    raise ValueError("the input must be a table with the column image, and text where the model reads one")


def text_of(value: Any) -> str | None:
    """Returns a text; None if it is blank, or the cell of a table is empty."""
    if value is None or value != value:  # NaN
        return None
    if not isinstance(value, str):
        raise ValueError(f"the column text must hold texts, has {type(value).__name__}")
    return value if value.strip() else None


def needed(text: str | None, what: str) -> str:
    if text is None:
        raise ValueError(f"the column text is empty: this model needs {what}")
    return text


def image_bytes(value: Any) -> bytes:
    """Returns the encoded image of bytes, base64, a path or an address. Raises ValueError, and OSError for a file."""
    match value:
        case bytes() | bytearray() | memoryview():
            return bytes(value)
        case str() if is_web_address(value):
            return fetched(value)
        case str() if value.startswith("data:"):
            return decoded(value.partition(",")[2])
        case str() if os.path.isfile(value):
            return Path(value).read_bytes()
        case str():
            return decoded(value)
    raise ValueError(f"an image must be bytes, base64 or a path, is {type(value).__name__}")


def decoded(text: str) -> bytes:
    """Returns the bytes of base64 with either alphabet, in one line or several. Raises ValueError."""
    try:
        return base64.b64decode("".join(text.split()).translate(URL_SAFE), validate=True)
    except (binascii.Error, ValueError):
        raise ValueError(f"image {text[:40]!r} is neither base64 nor a file of this server") from None


def fetched(address: str) -> bytes:
    if os.environ.get(URLS) != "1":
        raise ValueError(f"image {address[:80]!r}: addresses are not fetched; set {URLS}=1 where the server starts")
    with urllib.request.urlopen(address, timeout=SECONDS) as answer:
        data = answer.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise ValueError(f"image {address[:80]!r} has more than {MAX_BYTES:,} bytes")
    return data


def _load_pyfunc(path: str) -> Served:
    """Called by MLflow with the folder of a registered model."""
    return Served(load(path))
