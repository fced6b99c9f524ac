"""ITC and ITM of a Q-Former: which negatives ITM takes, and how its loss is weighed."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_blip2 import blip2_config, clip, timm_model
from tiny_models import TEXTS, tokenizer
from torch import Tensor

from blip.batch import Tokens
from blip.config import load_config
from blip.models.bert import KeysValues
from blip.models.blip2 import QFormerModel
from blip.models.image_encoder import load_image_encoder
from blip.models.weights.init import InitConfig, init_weights
from blip.runs.config import RunConfig
from blip.tasks.blip2_retrieval import Blip2RetrievalConfig
from blip.tasks.blip2_stage1 import Blip2Stage1, Blip2Stage1Config
from blip.tasks.model_folder import WEIGHTS, load_task, save_model
from blip.tasks.query_alignment import QueryAlignment, QueryAlignmentConfig
from blip.tasks.text import TextLengths


class Recording(QFormerModel):
    """Keeps the texts that it matched."""

    def match(self, text: Tokens, cross: list[KeysValues]) -> Tensor:
        self.matched = text.ids
        return super().match(text, cross)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Recording:
    torch.manual_seed(0)
    cfg = blip2_config(clip(tmp_path_factory.mktemp("clip")))
    return Recording(cfg, load_image_encoder(cfg.vision)).eval()


@pytest.mark.parametrize(("floor", "easy"), [(0.0, False), (100.0, True)])
def test_a_floor_makes_some_negatives_easy(model: Recording, floor: float, easy: bool):
    torch.manual_seed(1)
    text = tokenizer().encode(TEXTS[:4], 16)
    tokens = model.encode_image(torch.randint(0, 256, (4, 3, 16, 16), dtype=torch.uint8))
    cross = model.qformer.cross_keys_values(tokens)
    hardest = torch.tensor([1, 0, 3, 2])  # each pair's hard negative is its neighbour, by far
    similarity = 50.0 * torch.nn.functional.one_hot(hardest, 4).float()
    alignment = QueryAlignment(QueryAlignmentConfig(negatives="rank", floor=floor))
    drawn = set()
    for _ in range(20):
        loss = alignment.itm_loss(model, text, tokens, cross, similarity, similarity, torch.arange(4))
        assert loss.isfinite()
        wrong = model.matched[8:]
        drawn |= {torch.equal(wrong[row], text.ids[hardest[row]]) for row in range(4)}
    assert drawn == ({True, False} if easy else {True})


def test_the_alarm_of_itm_knows_the_weight_of_the_first_stage():
    for override, weight in (("task.weights.itm=0.25", 0.25), ("task.weights.itm=0", 1.0)):
        cfg = load_config(RunConfig, "blip2_stage1", "blip2_shapes", [override])
        assert cfg.itm_weight == weight


def test_a_first_stage_whose_processes_did_not_exchange_texts_is_read_again(tmp_path: Path):
    cfg = Blip2Stage1Config(
        alignment=QueryAlignmentConfig(negatives="rank"), text=TextLengths(tokens=16, pad="longest")
    )
    task = cfg.build_task(cfg.model_from(blip2_config(clip(tmp_path / "clip")).with_digests()), tokenizer())
    save_model(task, tmp_path / "model")
    again = load_task(tmp_path / "model")
    assert isinstance(again, Blip2Stage1)
    assert again.cfg.text == cfg.text


@pytest.mark.parametrize("encoder", [clip, timm_model])
def test_an_image_encoder_is_trained_on_from_a_first_stage_that_had_it_frozen(tmp_path: Path, encoder):
    first = Blip2Stage1Config(text=TextLengths(tokens=16))
    model = blip2_config(encoder(tmp_path / "encoder")).with_digests()
    save_model(first.build_task(first.model_from(model), tokenizer()), tmp_path / "first")
    cfg = Blip2RetrievalConfig(text=TextLengths(tokens=16))
    trained = model.model_copy(update={"vision": model.vision.model_copy(update={"trained": True})})
    torch.manual_seed(5)
    found = cfg.model_from(trained)
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    source = InitConfig(checkpoint=str(tmp_path / "first" / WEIGHTS))
    init_weights(found, source, cfg.DIFFERENCES)
    after, stored = found.state_dict(), load_file(tmp_path / "first" / WEIGHTS)
    encoders = {name for name in after if name.startswith("visual_encoder.")}
    assert encoders
    assert all(torch.equal(after[name], before[name]) for name in encoders)
    assert all(torch.equal(after[name], tensor) for name, tensor in stored.items())
