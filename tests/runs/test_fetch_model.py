"""Models that pipelines begin with: the champion, the first model of its bootstrap, and CapFilt's two."""

import shutil
from pathlib import Path
from typing import NamedTuple

import pytest
from tiny_models import both, captioner, model_folder, text_filter
from tiny_others import clip, git

from blip.config import ConfigError
from blip.results import (
    CapFiltResult,
    EvaluationResult,
    FetchResult,
    GateResult,
    Kept,
    KeptBySource,
    Noise,
    Result,
    SelectResult,
    TrainResult,
)
from blip.results.capfilt import Change
from blip.runs.fetch_model import fetch_champion, fetch_role
from blip.runs.outputs import StepOutput
from blip.workers.model import model_digest


class Bootstrap(NamedTuple):
    """A bootstrap whose model is registered."""

    store: str
    models: dict[str, Path]
    """The folders of its models by step."""
    champion: str
    """The source of the second one."""


@pytest.fixture(scope="module")
def bootstrap(tmp_path_factory: pytest.TempPathFactory) -> Bootstrap:
    root = tmp_path_factory.mktemp("bootstrap")
    empty, store = root / "empty", str(root / "store")
    empty.mkdir()

    def made(stage: str, result: Result, files: Path | None = None, **inputs: str) -> str:
        return StepOutput.publish(store, stage, files or empty, result, inputs).uri

    tasks = {"first": both(0), "second": both(1), "captioner": captioner(), "filter": text_filter()}
    models = {name: Path(model_folder(task, root / name)) for name, task in tasks.items()}
    trained = {
        name: made(name, TrainResult(steps=1, losses={}, curves={}, digest=model_digest(folder)), folder)
        for name, folder in models.items()
        if name != "second"
    }
    roles = {role: trained[role] for role in ("captioner", "filter")}
    scored = made("capfilt", CapFiltResult(images=1, shards=1), **roles)
    unknown, none = Change[float | None](before=None, after=None), Kept(precision=None, recall=None, kept=1.0)
    noise, kept = Noise(web=unknown, synthetic=unknown), KeptBySource(web=none, synthetic=none)
    data = made("select", SelectResult(noise=noise, capfilt=kept), scored=scored)
    digest = model_digest(models["second"])
    second = made("pretrain", TrainResult(steps=1, losses={}, curves={}, digest=digest), models["second"], data=data)
    judged = EvaluationResult(split="test", scores={})
    before, after = (made("evaluate", judged, model=model) for model in (trained["first"], second))
    made("register", GateResult(registered=True, reason="better"), model=second, before=before, after=after)
    registered = root / "registered"
    shutil.copytree(models["second"], registered)
    (registered / "MLmodel").write_text("a registry adds files of its own")
    return Bootstrap(store, models, str(registered))


def test_an_item_that_ends_in_first_starts_from_the_first_model_of_the_bootstrap(bootstrap: Bootstrap, tmp_path: Path):
    def fetched(item: str, source: str = bootstrap.champion) -> FetchResult:
        return fetch_champion(source, item, store=bootstrap.store, out=tmp_path / f"fetched-{item}")

    first, second = fetched("vqa@first"), fetched("vqa")
    assert (first.first, first.digest) == (True, model_digest(bootstrap.models["first"]))
    assert (second.first, second.digest) == (False, model_digest(bootstrap.models["second"]))
    assert model_digest(tmp_path / "fetched-vqa@first") == first.digest
    with pytest.raises(ConfigError, match=r"no bootstrap in .* made model .*: run the bootstrap with this store first"):
        fetched("nlvr@first", str(bootstrap.models["first"]))


@pytest.mark.parametrize("role", ["captioner", "filter"])
def test_without_a_source_a_role_is_played_by_the_model_that_made_the_data_of_the_bootstrap(
    bootstrap: Bootstrap, tmp_path: Path, role: str
):
    found = fetch_role(role, "", bootstrap.champion, store=bootstrap.store, out=tmp_path / "model")
    assert found.digest == model_digest(bootstrap.models[role]) == model_digest(tmp_path / "model")
    assert found.source == f"{role} of {bootstrap.champion}"
    assert found.task == {"captioner": "captioning", "filter": "retrieval"}[role]


def test_a_model_that_no_bootstrap_made_stands_for_no_role(bootstrap: Bootstrap, tmp_path: Path):
    said = (
        r"^no filter is named, but no bootstrap in .* made model .*: run the bootstrap .* or name one, filter=\.\.\.$"
    )
    with pytest.raises(ConfigError, match=said):
        fetch_role("filter", "", str(bootstrap.models["first"]), store=bootstrap.store, out=tmp_path / "model")


def test_a_named_model_of_any_kind_is_copied_whole_if_it_can_play_the_role(bootstrap: Bootstrap, tmp_path: Path):
    dual = clip(tmp_path / "clip")
    found = fetch_role("filter", str(dual), "", store=bootstrap.store, out=tmp_path / "model")
    assert (found.task, found.digest) == ("dual_encoder", model_digest(dual))
    assert {path.name for path in (tmp_path / "model").iterdir()} == {path.name for path in dual.iterdir()}
    ours = fetch_role("captioner", bootstrap.champion, "", store=bootstrap.store, out=tmp_path / "ours")
    assert ours.task == "pretraining"
    assert not (tmp_path / "ours" / "MLmodel").exists()
    with pytest.raises(ConfigError, match="this model writes no texts; name it as filter"):
        fetch_role("captioner", str(dual), "", store=bootstrap.store, out=tmp_path / "wrong")
    with pytest.raises(ConfigError, match="this model writes texts but scores none; name it as captioner"):
        fetch_role("filter", str(git(tmp_path / "git")), "", store=bootstrap.store, out=tmp_path / "wrong")


def test_what_is_no_model_is_refused_with_what_was_looked_for(tmp_path: Path):
    with pytest.raises(ConfigError, match="no such file or folder, nor a hub name"):
        fetch_champion("./nowhere", "vqa", store=str(tmp_path), out=tmp_path / "out")
