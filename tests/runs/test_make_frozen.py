import json

import pytest
import torch

from blip.config import ConfigError, load_config
from blip.models.frozen import frozen_digest
from blip.models.image_encoder import ImageEncoderConfig, load_image_encoder
from blip.runs import make_frozen as verb
from blip.runs.context import RunContext
from blip.runs.make_frozen import FrozenConfig, frozen_sources, make_frozen
from blip.storage import open_store

TINY = {
    "vision": {"size": 16, "width": 16, "depth": 2, "heads": 2, "images": 8, "steps": 1, "batch": 4},
    "opt": {"width": 16, "depth": 1, "heads": 2, "steps": 1, "batch": 4},
    "t5": {"width": 16, "depth": 1, "heads": 2, "steps": 1, "batch": 4},
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("frozen")
    context = RunContext(preset="base", overrides=(f"miniatures={json.dumps(TINY)}",), store=str(folder / "store"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BLIP_TRACKING", "off")
        yield context, folder / "out", make_frozen(context, out=folder / "out")


def test_the_models_lie_in_the_store_and_are_known_by_digest(made):
    _, _, result = made
    assert set(result.sources) == set(result.digests) == set(result.curves) == {"vision", "opt", "t5"}
    for name, uri in result.sources.items():
        assert frozen_digest(open_store(uri).folder) == result.digests[name]
    encoder = load_image_encoder(ImageEncoderConfig(source=result.sources["vision"], size=16, width=16))
    assert encoder(torch.zeros(1, 3, 16, 16, dtype=torch.uint8)).shape == (1, 5, 16)


def test_what_was_made_is_not_made_again(made, monkeypatch, tmp_path):
    context, _, result = made
    monkeypatch.setattr(verb, "make_miniatures", None)
    monkeypatch.setenv("BLIP_TRACKING", "off")
    again = make_frozen(context, out=tmp_path)
    assert (again.sources, again.digests, again.curves) == (result.sources, result.digests, result.curves)


def test_nothing_is_made_where_the_stages_name_their_models(monkeypatch, tmp_path):
    monkeypatch.setenv("BLIP_TRACKING", "off")
    result = make_frozen(RunContext(preset="base", store=str(tmp_path / "store")), out=tmp_path / "out")
    assert result.sources == {}
    assert not (tmp_path / "store").exists()


def test_a_source_by_name_is_found_in_the_folder(made):
    _, folder, result = made
    named = ImageEncoderConfig(source="frozen:vision")
    assert frozen_sources(named, folder) == [f"source={result.sources['vision']}"]
    assert frozen_sources(ImageEncoderConfig(source="timm/some_vit"), None) == []


@pytest.mark.parametrize(
    ("source", "folder", "said"),
    [
        ("frozen:vision", None, "name the folder that `blip make-frozen` wrote by --frozen"),
        ("frozen:vision", "nowhere", "has no frozen.json"),
        ("frozen:gpt", ".", "has opt, t5, vision: name one of them"),
    ],
)
def test_a_model_that_was_not_made_is_an_error(made, source, folder, said):
    _, made_folder, _ = made
    with pytest.raises(ConfigError) as error:
        frozen_sources(ImageEncoderConfig(source=source), folder and made_folder / folder)
    assert said in str(error.value)


def test_presets_of_the_papers_size_make_nothing():
    assert load_config(FrozenConfig, "frozen", "base").miniatures is None
