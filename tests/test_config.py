"""Recipes, presets and overrides; any text yields a value or an error of one line."""

import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from blip.config import Config, ConfigError, load_config, presets, stages, validate
from blip.runs.config import RunConfig
from blip.runs.stages import config_classes
from blip.workers.queue import LeaseConfig

TARS = ["data.gold=gold", "data.web=web", "data.test=test"]
"""The settings that the recipe of ingestion leaves open."""


@pytest.mark.parametrize("preset", presets())
@pytest.mark.parametrize("stage", stages())
def test_every_preset_has_every_stage(preset: str, stage: str):
    given = TARS if stage == "ingest" and not preset.endswith("shapes") else []
    assert isinstance(load_config(config_classes()[stage], stage, preset, given), Config)


def test_the_presets_are_the_sizes_and_the_stages_those_of_the_bootstrap():
    sizes_of_blip2 = ["blip2_capfilt", "blip2_capfilt_shapes", "blip2_g", "blip2_g_xxl", "blip2_l", "blip2_shapes"]
    assert presets() == ["base", *sizes_of_blip2, "large", "reference", "shapes", "small"]
    assert set(stages()) == set(config_classes())


def write(path: Path, **settings: object) -> str:
    path.write_text(yaml.safe_dump(settings, sort_keys=False), encoding="utf-8")
    return str(path)


def test_a_file_changes_the_recipe(tmp_path: Path):
    mine = write(tmp_path / "mine.yaml", pretrain={"epochs": 3, "model": {"vision": {"depth": 2}}})
    cfg, base = load_config(RunConfig, "pretrain", mine), load_config(RunConfig, "pretrain", "base")
    assert (cfg.epochs, cfg.model.vision.depth) == (3, 2)
    assert cfg.model.vision.width == base.model.vision.width
    assert load_config(RunConfig, "filter", mine) == load_config(RunConfig, "filter", "base")


def test_a_file_changes_another_preset_and_that_one_another(tmp_path: Path):
    write(tmp_path / "first.yaml", extends="shapes", pretrain={"epochs": 3})
    second = write(tmp_path / "second.yaml", extends="first.yaml", **{"pretrain, filter": {"optimizer": {"lr": 0.5}}})
    cfg = load_config(RunConfig, "pretrain", second, ["epochs=7"])
    assert (cfg.epochs, cfg.optimizer.lr, cfg.model.vision.size) == (7, 0.5, 32)
    assert load_config(RunConfig, "pretrain", second).epochs == 3
    assert load_config(RunConfig, "captioner", second).optimizer.lr == 3e-3


def test_of_two_keys_of_a_stage_the_later_one_has_the_last_word(tmp_path: Path):
    text = "pretrain, filter: {epochs: 1}\nfilter: {epochs: 2}\n"
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    mine = str(tmp_path / "mine.yaml")
    assert [load_config(RunConfig, stage, mine).epochs for stage in ("pretrain", "filter")] == [1, 2]


def test_a_section_of_another_type_begins_anew():
    cfg = load_config(RunConfig, "captioner", "base", ["task.decoding.type=nucleus", "task.decoding.top_p=0.7"])
    assert cfg.task.model_dump()["decoding"] == {
        "type": "nucleus",
        "top_p": 0.7,
        "top_k": 50,
        "repetition_penalty": 1.1,
        "min_length": 5,
        "max_length": 20,
    }


def test_a_section_on_the_command_line_takes_the_place_of_the_recipes():
    cfg = load_config(RunConfig, "pretrain", "base", ["loader={batch: 8}"])
    assert (cfg.loader.batch, cfg.loader.micro_batch, cfg.loader.workers) == (8, None, 0)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "epochs: 3\n",
            f"unknown stage 'epochs'; choices: {', '.join([*stages(), 'extends'])}",
        ),
        ("pretrain: 3\n", "pretrain must hold settings as key: value (given: 3)"),
        ("pretrain, fliter: {}\n", "unknown stage 'fliter'"),
        ("extends: nothing\n", f"preset 'nothing' is neither one of: {', '.join(presets())}; nor a .yaml file"),
        ("extends: mine.yaml\n", "extends itself"),
        ("extends: [base]\n", "extends must name a preset"),
        ("pretrain: {epoch: 3}\n", "unknown key epoch; did you mean epochs?"),
        ("- a\n", "must be a mapping of keys to values"),
    ],
)
def test_a_presets_mistake_is_one_line(tmp_path: Path, text: str, said: str):
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError) as wrong:
        load_config(RunConfig, "pretrain", str(tmp_path / "mine.yaml"))
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)


MEET = [
    ("pretrain", "sources=[gold,gold]", "sources: gold, gold: a source is named twice"),
    ("filter", "repeats={web: 2}", "repeats names 'web', which is no source of this run; sources: gold"),
    ("pretrain", "repeats={gold: 0}", "repeats.gold"),
    ("pretrain", "lead={sources: [clean], epochs: 2}", "lead.sources names 'clean', which is no source of this run"),
    ("pretrain", "model.text.heads=7", "text.width is 64, not divisible by 7 heads"),
    ("pretrain", "model.vision.heads=7", "vision.width is 64, not divisible by 7 heads"),
    ("pretrain", "model.vision.patch=7", "vision.size is 32, not divisible by patches of 7 pixels"),
    ("pretrain", "model.vision.patch=64", "vision.size is 32, not divisible by patches of 64 pixels"),
    ("pretrain", "model.vision.size=64", "transform.size is 32 but model.vision.size is 64"),
    ("pretrain", "model.vision.checkpoint_last=9", "vision.checkpoint_last is 9, but there are 3 blocks"),
    ("pretrain", "model.text.checkpoint_last=9", "text.checkpoint_last is 9, but there are 2 layers"),
    ("pretrain", "task.text.tokens=40", "task.text.tokens is 40, but model.text.positions is 32"),
    ("captioner", "task.text.tokens=33", "task.text.tokens is 33, but model.text.positions is 32"),
    ("filter", "task.text.tokens=33", "task.text.tokens is 33, but model.text.positions is 32"),
    ("pretrain", "model.text.positions=16", "task.text.tokens is 30, but model.text.positions is 16"),
    ("captioner", "task.decoding.max_length=600", "decoding.max_length is 600, but the model has 32 positions"),
    ("captioner", "task.decoding.min_length=21", "min_length is 21, but max_length is 20"),
    ("captioner", "task.decoding.max_length=4", "min_length is 5, but max_length is 4"),
    (
        "captioner",
        "task.decoding={type: beam, min_length: 0, max_length: 3}",
        "decoding.max_length is 3, but the prompt takes 4 tokens of it",
    ),
    ("capfilt", "stream.decoding.min_length=30", "min_length is 30, but max_length is 24"),
    ("capfilt", "stream={captions: 2, decoding: {type: beam}}", "captions is 2, but beam search has one best text"),
    ("evaluate", "captioning.decoding.max_length=2", "min_length is 3, but max_length is 2"),
    ("filter", "task.alignment.negatives=world", "alignment.negatives is world, but text.pad is longest"),
    ("pretrain", "task.alignment.negatives=world", "alignment.negatives is world, but text.pad is longest"),
    ("pretrain", "task.alignment.temperature_bounds=[0.5, 0.001]", "alignment.temperature_bounds are 0.5 and 0.001"),
    ("pretrain", "loader.micro_batch=7", "loader.batch is 64, not divisible by micro-batches of 7"),
    ("pretrain", "loader.micro_batch=128", "loader.batch is 64, not divisible by micro-batches of 128"),
    (
        "pretrain",
        "optimizer.layer_decay_of=vision",
        "optimizer.layer_decay_of is vision, which a model for pretraining does not have; choices: v",
    ),
    (
        "captioner",
        "optimizer.layer_decay_of=text_encoder",
        "which a model for captioning does not have; choices: visual_encoder, text_decoder",
    ),
    ("pretrain", "engine.zero=3", "engine.zero is 3, but this task has a momentum teacher"),
    ("evaluate", "retrieval=null", None),
]


@pytest.mark.parametrize(("stage", "override", "said"), MEET)
def test_numbers_that_do_not_fit_together_are_one_short_line(stage: str, override: str, said: str | None):
    if said is None:
        load_config(config_classes()[stage], stage, "shapes", [override])
        return
    with pytest.raises(ConfigError) as wrong:
        load_config(config_classes()[stage], stage, "shapes", [override])
    line = str(wrong.value)
    assert line.startswith(f"{stage} (preset shapes): ")
    assert said in line
    assert "\n" not in line
    assert ": :" not in line
    assert len(line) < 330, "without the configuration"


BROKEN = "[ { ] } [[ {{ [1 {a {a:1 {a: [ ' \" 'a \"a a' : :: :a a: a:b ,, , @ ` % & * ! | > - -- --- ... ? # = == ~ ~~ "
BROKEN += "\\ / //"
NUMBERS = "0 -0 -1 1 0x 0xff 0b 0b2 0o9 010 1_000 _1 1e 1e5 1e-4 1e400 -1e400 .e . .. .1. 1.2.3 + - +- 1e1e1 ١٢"
ENDLESS = (
    ".inf -.inf .Inf .nan .NaN inf nan Infinity NaN 99999999999999999999 -99999999999999999999 100000 1000000000000"
)
WORDS = "true false yes no on off y n null Null none None"

VALUES = (
    # broken, or half of something
    *BROKEN.split(),
    *[
        "",
        " ",
        "\t",
        "- a",
        "a: b",
        "a: b: c",
        "? a",
        "a #b",
        " #",
        "[a #b]",
        "{a: b",
        "{a: b}}",
        "[a]]",
        "[a][b]",
        "'a' b",
        '"a" b',
        "\\x",
    ],
    *[
        "*a",
        "&a",
        "&a *a",
        "&a [*a]",
        "[&a x, *a]",
        "[*a]",
        "{<<: *a}",
        "{<<: {a: 1}}",
        "{&a a: *a}",
        "[&a a, &a b]",
        "{a: &a {b: *a}}",
    ],
    # tags and dates
    *[
        "!!int 3",
        "!!python/object:os.system x",
        "!!python/name:os.system",
        "[!!int 3]",
        "[!a b]",
        "{!!str a: 1}",
        "[! a]",
        "!<tag:yaml> a",
    ],
    *[
        "2024-01-01",
        "2024-13-45",
        "2024-13-45T99:99:99",
        "[2024-13-45]",
        "2001-12-14t21:59:43.10-99:99",
        "1:30",
        "190:20:30",
        "12:99",
    ],
    # numbers
    *NUMBERS.split(),
    *ENDLESS.split(),
    *["9" * 300, "9" * 5000, "0x" + "f" * 300, "1e" + "9" * 300, "0." + "3" * 5000, "-" * 5000, "9" * 100_000],
    # depth, length, many
    *[
        "[" * 100_000,
        "{" * 100_000,
        "[" * 60 + "]" * 60,
        "[" * 20_000 + "]" * 20_000,
        "{a: " * 60 + "}" * 60,
        "- " * 50_000,
        "a" * 100_000,
    ],
    *[
        "[" + "a," * 60_000 + "]",
        "{" + "a: 1," * 30_000 + "}",
        "[" + ",".join(f"{{k{i}: v}}" for i in range(5000)) + "]",
    ],
    # kinds that do not belong, and keys that are none
    *WORDS.split(),
    *[
        "[]",
        "{}",
        "[1, 2]",
        "{a: 1}",
        "{1: 2}",
        "{null: 1}",
        "{[1]: 2}",
        "{{a: 1}: 2}",
        "{a: 1, a: 2}",
        "{? [a] : b}",
        '"quoted"',
        "'quoted'",
    ],
    # characters
    *[
        "\0",
        "a\0b",
        "\x01",
        "\x1b[31m",
        "\x7f",
        "\x85",
        "\u2028",
        "\ufeff",
        "\ufffe",
        "\ud83d",
        "a\udcffb",
        "[\ud83d]",
        '"\\ud83d"',
        "ä",
        "中文",
        "🐈",
    ],
    *[
        "a\nb",
        "a\rb",
        "\n",
        "[a\nb]",
        '"a\\nb"',
        "a\tb",
        "[\ta]",
        "{a:\tb}",
        '"\\0"',
        '"\\x"',
        '"\\u12"',
        "%YAML 1.1",
        "%TAG ! !",
        "--- a",
        "a\n---\nb",
    ],
)
"""Values of an override: typical, odd and hostile."""

KEYS = [
    "",
    ".",
    "..",
    "a.",
    ".a",
    "a..b",
    "a b",
    "ä",
    "\n",
    "\0",
    "\ud83d",
    "type",
    "model.",
    "a." * 50_000,
    "a" * 100_000,
    "model\n.text",
]


def said(make) -> str | None:
    """Returns the error message, or None; an error other than a ConfigError of short lines fails the test."""
    try:
        make()
    except ConfigError as error:
        lines = str(error).splitlines()
        assert lines
        assert all(0 < len(line) <= 900 for line in lines), [len(line) for line in lines]
        assert all(line == line.strip() for line in lines)
        return str(error)
    return None


@pytest.mark.parametrize(
    "key", ["epochs", "seed", "model.vision.depth", "model", "task.alignment", "sources", "init.text", "task.type"]
)
def test_whatever_stands_in_an_override_ends_in_a_value_or_in_lines(key: str):
    began = time.monotonic()
    wrong = []
    for value in VALUES:
        override = f"{key}={value}"
        wrong.append(said(lambda override=override: load_config(RunConfig, "pretrain", "shapes", [override])))
    assert time.monotonic() - began < 30
    assert sum(error is not None for error in wrong) > len(VALUES) / 3 or key == "init.text"


@pytest.mark.parametrize("key", KEYS)
def test_whatever_stands_for_a_key_ends_in_lines(key: str):
    assert said(lambda: load_config(RunConfig, "pretrain", "shapes", [f"{key}=1"]))
    assert said(lambda: load_config(RunConfig, "pretrain", "shapes", [key]))


@pytest.mark.parametrize("bomb", ["lists", "sections", "itself", "merged"])
def test_aliases_that_multiply_end_in_a_line(tmp_path: Path, bomb: str):
    def grown(first: str, more: Callable[[str], str]) -> str:
        return "\n".join([f"a0: &a0 {first}", *(f"a{i}: &a{i} {more(f'*a{i - 1}')}" for i in range(1, 40))])

    texts = {
        "lists": grown("[x]", lambda a: f"[{', '.join([a] * 10)}]"),
        "sections": grown("{x: 1}", lambda a: "{" + ", ".join(f"k{i}: {a}" for i in range(10)) + "}"),
        "merged": grown("{x: 1}", lambda a: f"{{<<: [{', '.join([a] * 10)}]}}"),
        "itself": "pretrain: &a {model: *a}",
    }
    (tmp_path / "bomb.yaml").write_text(texts[bomb], encoding="utf-8")
    began = time.monotonic()
    error = said(lambda: load_config(RunConfig, "pretrain", str(tmp_path / "bomb.yaml")))
    assert error is not None
    assert "anchors and aliases make more than" in error
    assert time.monotonic() - began < 5


FILES = {
    "latin-1": "pretrain: {init: {text: Müller}}\n".encode("latin-1"),
    "utf-16": "pretrain: {epochs: 1}\n".encode("utf-16"),
    "nothing": b"",
    "zeros": b"\0" * 1000,
    "noise": bytes(range(256)) * 40,
    "tab": b"pretrain:\n\tepochs: 1\n",
    "twice": b"pretrain: {epochs: 1}\npretrain: {epochs: 2}\n",
    "two documents": b"a: 1\n---\nb: 2\n",
    "a tag": b"pretrain: !!python/object/apply:os.system [ls]\n",
    "a date": b"pretrain: {epochs: 2024-13-45}\n",
    "deep": b"pretrain: " + b"[" * 3000 + b"]" * 3000,
    "deep blocks": b"".join(b" " * i + b"a:\n" for i in range(400)),
    "long": b"pretrain: {}\n" + b"# comment\n" * 200_000,
    "a key of keys": b"pretrain: {? {a: b} : c}\n",
    "a text": b"pretrain: words words\n",
    "number": b"3",
    "unclosed": b"pretrain: {epochs: 1\n",
    "surrogates": b'pretrain: {init: {text: "\\ud83d"}}\n',
    "infinite": b"pretrain: {epochs: .inf}\n",
}


@pytest.mark.parametrize("name", FILES)
def test_whatever_stands_in_a_file_ends_in_a_value_or_in_lines(tmp_path: Path, name: str):
    (tmp_path / "mine.yaml").write_bytes(FILES[name])
    error = said(lambda: load_config(RunConfig, "pretrain", str(tmp_path / "mine.yaml"), []))
    assert (error is None) == (name == "nothing"), error


def test_a_file_with_a_byte_order_mark_is_read(tmp_path: Path):
    (tmp_path / "mine.yaml").write_bytes(b"\xef\xbb\xbfpretrain: {epochs: 1}\n")
    assert load_config(RunConfig, "pretrain", str(tmp_path / "mine.yaml")).epochs == 1


def test_a_folder_and_nothing_are_no_preset(tmp_path: Path):
    (tmp_path / "folder.yaml").mkdir()
    assert "folder.yaml is a folder, not a file" in (
        said(lambda: load_config(RunConfig, "pretrain", str(tmp_path / "folder.yaml"))) or ""
    )
    assert "no such file" in (said(lambda: load_config(RunConfig, "pretrain", str(tmp_path / "none.yaml"))) or "")


@pytest.mark.parametrize(
    "path",
    [
        "/data/my #1/web.json",
        "my #1",
        "a: b",
        "{000..005}.tar",
        "[a-c]*.tar",
        "*.tar",
        "s3://b/w/{00..41}.tar",
        "it's",
        "100%",
        "a?b",
        "@x",
        "2024-01-01",
    ],
)
def test_a_path_needs_no_quotes(path: str):
    cfg = load_config(config_classes()["ingest"], "ingest", "base", [*TARS, f"data.web={path}"])
    assert cfg.model_dump()["data"]["web"] == path


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("epochs=.inf", "epochs: Input should be a finite number (given: inf)"),
        ("epochs=.nan", "epochs: Input should be a finite number (given: nan)"),
        ("epochs=-1", "epochs: Input should be greater than 0 (given: -1)"),
        ("seed=-1", "seed: Input should be greater than or equal to 0 (given: -1)"),
        ("model.vision.depth=100000", "model.vision.depth: Input should be less than or equal to 1000 (given: 100000)"),
        ("optimizer.betas=[0.9, 1.0]", "optimizer.betas.1: Input should be less than 1 (given: 1.0)"),
        ("epochs=[", "epochs: Input should be a valid number, unable to parse string as a number (given: '[')"),
        ("epochs=[1", "epochs: Input should be a valid number, unable to parse string as a number (given: '[1')"),
        ("epochs={a: b: c}", "override 'epochs={a: b: c}' is not YAML: "),
        (
            "init.text=5",
            "init.text: Input should be a valid string (given: 5); "
            "a number that is meant as text needs quotes within quotes: '\"5\"'",
        ),
    ],
)
def test_a_value_that_cannot_be_is_named(override: str, said: str):
    with pytest.raises(ConfigError) as wrong:
        load_config(RunConfig, "pretrain", "shapes", [override])
    assert said in str(wrong.value)
    assert "\n" not in str(wrong.value)


def test_a_key_is_named_as_it_is_written():
    with pytest.raises(ConfigError) as wrong:
        load_config(config_classes()["select"], "select", "base", ["rule.web=2", "rule.webb=1"])
    assert str(wrong.value).splitlines() == [
        "select (preset base): rule.web: Input should be less than or equal to 1 (given: 2)",
        "select (preset base): unknown key rule.webb; did you mean web? choices: origins, synthetic, type, web",
    ]


def test_what_is_missing_is_named():
    with pytest.raises(ConfigError) as wrong:
        validate(LeaseAndName, {"lease": {}}, "job")
    assert str(wrong.value) == "job: name has no value: give it as name=VALUE"


class LeaseAndName(Config):
    name: str
    lease: LeaseConfig
