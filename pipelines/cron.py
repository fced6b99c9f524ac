"""Cron schedules of Kubeflow Pipelines: six fields, seconds first."""

import re

CRON_FIELDS = {
    "second": (0, 59),
    "minute": (0, 59),
    "hour": (0, 23),
    "day of month": (1, 31),
    "month": (1, 12),
    "day of week": (0, 6),
}
FIELD_NAMES = {
    "month": ["JAN", "FEB", "MAR", "APR", "MAY", "JUN", "JUL", "AUG", "SEP", "OCT", "NOV", "DEC"],
    "day of week": ["SUN", "MON", "TUE", "WED", "THU", "FRI", "SAT"],
}


class CronError(ValueError):
    """An invalid or misleading schedule; the message names the field, the rule and the correct form."""


def check_cron(text: str) -> str:
    """Returns a schedule of six fields with single spaces. Raises CronError."""
    fields = text.split()
    if len(fields) == 5:
        minute, hour, *_ = fields
        raise CronError(
            f"{text!r} has five fields, and would be read as second, minute, hour, day of month and month: "
            f"at second {minute} of minute {hour} rather than at minute {minute} of hour {hour}. "
            f"Put the second before them: {'0 ' + text!r}"
        )
    if len(fields) != 6:
        raise CronError(
            f"{text!r} must have six fields, {', '.join(CRON_FIELDS)}; for example '0 0 3 * * 0', Sundays at 03:00 UTC"
        )
    for (name, (lowest, highest)), field in zip(CRON_FIELDS.items(), fields, strict=True):
        if not all(is_part(part, name, lowest, highest) for part in field.split(",")):
            raise CronError(
                f"{text!r}: {field!r} is no {name}: write *, or {lowest} to {highest}, alone or as 1,3 or 1-3 or */2"
            )
    return " ".join(fields)


def is_part(part: str, name: str, lowest: int, highest: int) -> bool:
    """Whether a comma-separated part of a field is valid and in the field's range."""
    for number, word in enumerate(FIELD_NAMES.get(name, []), lowest):
        part = re.sub(rf"\b{word}\b", str(number), part, flags=re.IGNORECASE)
    found = re.fullmatch(r"(?:[*?]|(\d+)(?:-(\d+))?)(?:/([1-9]\d*))?", part)
    if not found:
        return False
    bounds = [int(bound) for bound in found.groups()[:2] if bound]
    return bounds == sorted(bounds) and all(lowest <= bound <= highest for bound in bounds)
