import pytest

from pipelines.cron import CronError, check_cron


@pytest.mark.parametrize(
    "text",
    [
        "0 0 3 * * 0",
        "0 */15 * * * *",
        "0 0 3 1,15 * ?",
        "0 0 9-17 * JAN-MAR MON-FRI",
        "5/10 0 0 1 1 SUN",
        "0  0 3 * *  sun",
    ],
)
def test_six_fields_are_taken(text):
    assert check_cron(text) == " ".join(text.split())


def test_five_fields_are_refused_with_the_reason_and_the_way_out():
    with pytest.raises(CronError, match=r"'0 3 .* would be read as second.* Put the second before them: '0 0 3 "):
        check_cron("0 3 * * *")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("0 0 24 * * *", "'24' is no hour: write ., or 0 to 23"),
        ("0 60 3 * * *", "'60' is no minute"),
        ("0 0 3 0 * *", "'0' is no day of month"),
        ("0 0 3 * FOO *", "'FOO' is no month"),
        ("0 0 3 * * 7", "'7' is no day of week"),
        ("0 0 5-3 * * *", "'5-3' is no hour"),
        ("0 0 */0 * * *", "'./0' is no hour"),
        ("0 0 3,, * * *", "'3,,' is no hour"),
        ("@daily", "must have six fields"),
        ("", "must have six fields"),
    ],
)
def test_what_would_never_run_is_refused(text, said):
    with pytest.raises(CronError, match=said):
        check_cron(text)
