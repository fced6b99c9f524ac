"""The Jinja environment of all pages."""

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from blip.tracking.run import flatten


@cache
def environment() -> Environment:
    loader = PackageLoader("blip.report")
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"minutes": minutes, "flat": flatten, "number": number}
    return made


def page_template(name: str) -> Template:
    """Returns a template of `blip/report/templates` by its file name."""
    return environment().get_template(name)


def number(value: float) -> str:
    """Formats to four significant digits."""
    return f"{value:.4g}"


def minutes(seconds: float | None) -> str:
    """Formats a duration as `4.2 s`, `41 s`, `2:05 min`, `1:12 h`."""
    if seconds is None:
        return ""
    whole = round(seconds)
    if whole < 60:
        return f"{seconds:.1f} s" if seconds < 10 else f"{whole} s"
    return f"{whole // 60}:{whole % 60:02} min" if whole < 3600 else f"{whole // 3600}:{whole % 3600 // 60:02} h"
