"""CapFilt's own page: the filter's scores, and pictures of what was kept and dropped."""

from collections.abc import Sequence
from functools import cache
from itertools import chain
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from blip.report.bootstrap_page import Picture, Scores, chart_of, galleries, picture


def html(figures: dict[str, Any], pictures: Sequence[Picture]) -> str:
    """The page, self-contained, of the figures of `select` and `Figures.pictures`."""
    scores = [Scores.model_validate(values) for values in figures["scores"].values()]
    return template().render(
        shares=figures["capfilt"],
        counts=figures["counts"],
        charts=[(part.source, chart_of(part, figures["threshold"])) for part in scores if any(part.true + part.false + part.unknown)],
        galleries=list(chain.from_iterable(galleries(pictures, source) for source in ("web", "synthetic"))),
        picture=picture,
    )


@cache
def template() -> Template:
    environment = Environment(
        loader=PackageLoader("blip.report"), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    return environment.get_template("capfilt_page.html")
