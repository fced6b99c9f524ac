"""Choice: what a pipeline is given for own data, its source and the preset that goes with the data's size.

`python -m blip.runs.choice PLACE...` prints it as JSON, for whoever starts a pipeline.
"""

import json
import os
import shlex
import sys
from collections import Counter
from collections.abc import Sequence
from itertools import islice

from blip.config import EXIT_CONFIG, Config, ConfigError, validate
from blip.datasets.own import Files, Form, forms_of
from blip.runs.data_config import KINDS
from blip.runs.found import HEAD, aligned, found_row, hints_of, is_manifest, listed, read_without_keys
from blip.shards.manifest import Manifest
from blip.storage import StoreError

SIZES = {"shapes": 2_000, "small": 1_000_000}
"""Presets by the number of images below which they are chosen; `base` from there on."""
LARGEST = "base"


class Choice(Config):
    """Parameters of a pipeline, and what is said of them."""

    source: str
    preset: str
    images: int
    said: tuple[str, ...]


def choose(data: Sequence[str], preset: str = "", overrides: Sequence[str] = ()) -> Choice:
    """Returns the parameters for places of own data; a preset that is given stays.

    Raises ConfigError if a place is not understood, StoreError if it is away.
    """
    read = [place for one in data for place in places_in(one)]
    read_without_keys(read, overrides)
    sources = [os.path.abspath(place) if "://" not in place else place for place in read]
    if all(map(is_manifest, sources)):
        images, rows = sum(Manifest.load(source).samples for source in sources), []
    else:
        forms = forms_of(validate(Files, {"path": sources, **hints_of(overrides)}, "data"))
        images, rows = sum(map(estimated, forms)), [*map(found_row, forms)]
    chosen = preset or next((name for name, most in SIZES.items() if images < most), LARGEST)
    why = "as said" if preset else f"for about {images:,} images; PRESET=... names another"
    table = aligned([HEAD, *rows]) if rows else []
    said = (*table, f"  preset {chosen}, {why}")
    return Choice(source=listed(sources, bare=True), preset=chosen, images=images, said=said)


def places_in(text: str) -> list[str]:
    """Returns the places in what was given as one text: a place that exists, or several apart by spaces, as in a shell.

    Raises ConfigError for a kind of data, which is no place.
    """
    found = [text] if os.path.exists(text) or " " not in text else shlex.split(text)
    if kinds := [place for place in found if place in KINDS and not os.path.exists(place)]:
        raise ConfigError(f"DATA={kinds[0]}: names a kind of data, not a place; say SET=source={kinds[0]}")
    return found


def estimated(form: Form) -> int:
    """Returns the number of a form's images, from the first of them where only reading tells."""
    if not form.total:
        next(islice(form.groups(Counter()), 1), None)
    return form.total


def main() -> None:
    """Prints the choice for the arguments: a preset or nothing, settings of data, `--`, and places."""
    where = sys.argv.index("--")
    preset, *overrides = sys.argv[1:where]
    try:
        found = choose(sys.argv[where + 1 :], preset, overrides)
    except (ConfigError, StoreError) as error:
        print(error, file=sys.stderr)  # noqa: T201
        raise SystemExit(EXIT_CONFIG if isinstance(error, ConfigError) else 1) from None
    print(json.dumps(found.model_dump()))  # noqa: T201


if __name__ == "__main__":
    main()
