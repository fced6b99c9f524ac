"""CapFilt's own page: the filter's scores, and pictures of what was kept and dropped."""

from collections.abc import Sequence
from itertools import chain

from blip.report.bootstrap_page import ReportPicture, chart_of, galleries, picture
from blip.report.rendering import page_template
from blip.results import SOURCES, SelectResult


def capfilt_html(result: SelectResult, pictures: Sequence[ReportPicture]) -> str:
    """Returns the self-contained page of a selection and its pictures."""
    drawn = [part for part in result.histograms if any(part.true + part.false + part.unknown)]
    return page_template("capfilt_page.html").render(
        shares={source: getattr(result.capfilt, source) for source in SOURCES},
        counts=result.counts,
        mlflow=result.mlflow,
        charts=[(part.source, chart_of(part, result.threshold)) for part in drawn],
        galleries=list(chain.from_iterable(galleries(pictures, source) for source in SOURCES)),
        picture=picture,
        score=result.score_name,
    )
