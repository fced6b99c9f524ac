# ruff: noqa: ARG001
import pytest
from kfp import dsl

from pipelines.parameters import ParameterError, PipelineStep, steps, values


@dsl.component(base_image="python:3", install_kfp_package=False)
def nothing():
    pass


@dsl.pipeline(name="typed")
def typed(
    word: str,
    count: int = 1,
    share: float = 0.5,
    again: bool = False,
    pool: dict = {},  # noqa: B006
    overrides: list[str] = [],  # noqa: B006
):
    """Takes one of each.

    1. nothing: do it, at last
    """
    nothing()


def test_values_have_the_types_that_the_pipeline_states():
    given = ["word=7", "count=3", "share=1", "again=true", "pool={gpu: a100}"]
    assert values(typed, given) == {"word": "7", "count": 3, "share": 1.0, "again": True, "pool": {"gpu": "a100"}}
    assert isinstance(values(typed, ["share=1"])["share"], float)


def test_dotted_names_join_the_overrides():
    assert values(typed, ["overrides=[a.b=1]", "optimizer.lr=1e-4"]) == {"overrides": ["a.b=1", "optimizer.lr=1e-4"]}


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("wrd=7", "unknown parameter wrd; choices: again, count, overrides, pool, share, word"),
        ("count=many", "count=many: must be of type int"),
        ("again=perhaps", "again=perhaps: must be of type bool"),
        ("pool=[1]", "pool=.1.: must be of type dict"),
        ("word", "'word' must read name=value"),
    ],
)
def test_a_wrong_setting_is_named_with_the_way_out(setting, said):
    with pytest.raises(ParameterError, match=said):
        values(typed, [setting])


def test_steps_are_those_that_the_docstring_numbers():
    assert steps(typed) == [PipelineStep(1, "nothing", "do it, at last")]


@pytest.mark.parametrize(
    "given",
    [
        *(
            f"pool={text}"
            for text in (
                "[",
                "{",
                "{a",
                "{a: *b}",
                "{a: !!int 3}",
                "2024-13-45",
                "x",
                "",
                "{" * 50_000,
                "\0",
                "{a: 1, a: 2}",
            )
        ),
        *(f"share={text}" for text in (".inf", "inf", "nan", "1e999", "x", "", "{}")),
        *(f"count={text}" for text in ("1.5", "x", "", "9" * 5000)),
        *(f"again={text}" for text in ("yes", "1", "", "[", "&a")),
    ],
)
def test_whatever_stands_for_a_value_is_refused_in_one_line(given: str):
    with pytest.raises(ParameterError) as wrong:
        values(typed, ["word=a", given])
    assert "\n" not in str(wrong.value)
    assert len(str(wrong.value)) < 900
