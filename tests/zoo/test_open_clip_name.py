"""Models of open_clip by the name of their architecture and a file of weights."""

from pathlib import Path

import open_clip
import pytest
import torch
from fake_hub import use_hub
from PIL import Image
from tiny_models import TEXTS, picture
from tiny_others import SIDE, spread

from blip.config import ConfigError
from blip.data.images import decode
from blip.zoo.contract import ImageBatch
from blip.zoo.dual_encoder import OpenClipDualEncoder
from blip.zoo.source import model_folder

TINY = {
    "embed_dim": 8,
    "vision_cfg": {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8},
    "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1},
}


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A cache of the test's own, no network, and an architecture that is small."""
    use_hub(tmp_path / "home", "http://127.0.0.1:9", monkeypatch, offline=True)
    configurations, names = open_clip.factory._MODEL_CONFIGS, open_clip.list_models()
    monkeypatch.setitem(configurations, "ViT-tiny", TINY)
    monkeypatch.setattr(open_clip, "list_models", lambda: [*names, "ViT-tiny"])


def similarities(folder: Path) -> list[float]:
    judge = OpenClipDualEncoder(folder)
    images = ImageBatch([{judge.view.name: judge.view.make(decode(picture(0)))}], 1)
    return [found.similarity or 0.0 for found in judge.score(images, [TEXTS[:3]])[0]]


def test_a_training_s_checkpoint_is_a_filter_by_its_architecture(tmp_path: Path):
    model = spread(open_clip.CLIP(**TINY), 3)
    wrapped = {f"module.{name}": tensor for name, tensor in model.state_dict().items()}
    torch.save({"epoch": 5, "name": "mine", "state_dict": wrapped, "optimizer": {"state": {}}}, tmp_path / "epoch_5.pt")
    folder = model_folder(f"open_clip:ViT-tiny:{tmp_path}/epoch_5.pt")
    assert folder == model_folder(f"open_clip:ViT-tiny:{tmp_path}/epoch_5.pt")
    transform = open_clip.image_transform(SIDE, False, open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)
    with torch.inference_mode():
        image: Image.Image = decode(picture(0))
        seen = model.encode_image(transform(image)[None], normalize=True)
        read = model.encode_text(open_clip.get_tokenizer("ViT-B-32")(TEXTS[:3]), normalize=True)
    assert similarities(folder) == pytest.approx((read @ seen[0]).tolist(), abs=1e-5)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("open_clip:ViT-B32:x.pt", "has no architecture 'ViT-B32'; near are .*'ViT-B-32'"),
        ("open_clip:ViT-B-32", "name its weights, as open_clip:ViT-B-32:epoch_5.pt, or one of open_clip's: .*laion2b"),
        ("open_clip:ViT-B-32:nowhere.pt", "'nowhere.pt': no such file or folder"),
        ("open_clip:ViT-B-32:laion2b_s34b_b79k", "'laion/CLIP-ViT-B-32-laion2B-s34B-b79K': the hub's cache"),
    ],
)
def test_what_is_nowhere_is_said(source: str, message: str):
    with pytest.raises(ConfigError, match=message):
        model_folder(source)
