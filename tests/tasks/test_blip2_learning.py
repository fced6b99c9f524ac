"""BLIP-2 is fine-tuned to describe images that it has not seen and to answer questions about them: the image encoder
is trained, the language model stays as it is."""

from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from random import Random

import pytest
import timm
import torch
from learning import WIDTH, descend, small_text
from timm.models import save_for_hf
from torch import Tensor

from blip.data.images import decode
from blip.data.tokenizer import Tokenizer
from blip.data.transforms import eval_transform
from blip.datasets.shapes import Scene, random_scene, render_scene
from blip.miniatures import language
from blip.miniatures.documents import QUESTION, Document, Turn
from blip.miniatures.words import train_words
from blip.models.blip2 import Blip2Config
from blip.models.generation import Beam
from blip.models.image_encoder import ImageEncoderConfig
from blip.models.language.config import LanguageModelConfig
from blip.models.med import SpecialTokens
from blip.shards.sample import Sample
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.tasks.task import EvaluableTask
from blip.training.optimizer import OptimizerConfig, build_optimizer

SIZE = 16
Scores = dict[str, float]


def caption_of(scene: Scene) -> str:
    return f"a {scene['objects'][0]['size']} thing on {scene['ground']}"


def questions_of(scene: Scene) -> list[tuple[str, str]]:
    return [("how big is the thing?", scene["objects"][0]["size"]), ("what colour is the ground?", scene["ground"])]


def documents(seed: int, *_: float) -> Iterator[Document]:
    """What a language model needs to know of these captions and questions: bare words, then what they say."""
    rng = Random(seed)
    while True:
        scene = random_scene(rng)
        context = " ".join(rng.sample([scene["ground"], scene["objects"][0]["size"]], 2))
        question, answer = rng.choice(questions_of(scene))
        yield Document(context, (Turn("", caption_of(scene)),))
        yield Document(context, (Turn(QUESTION.format(question), answer),))


def samples(split: str, count: int) -> list[Sample]:
    """Images with a caption, and with questions."""
    rng = Random(split)
    scenes = [random_scene(rng) for _ in range(count)]
    return [
        Sample(
            f"{split}-{number}",
            [render_scene(scene, rng, SIZE)],
            [caption_of(scene)],
            {"questions": [{"question": q, "answers": [a] * 10, "kind": q} for q, a in questions_of(scene)]},
        )
        for number, scene in enumerate(scenes)
    ]


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small `opt`, which has learnt to describe and to answer from words, and a random `vision`."""
    root = tmp_path_factory.mktemp("frozen")
    read = [f"{d.context} {d.continuation}" for d in islice(documents(1), 100)]
    small = language.MiniatureLanguageConfig(
        width=WIDTH, depth=2, heads=2, positions=128, init_std=0.18, steps=120, batch=16, lr=1e-2
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(language, "documents", documents)
        language.train_opt(small, train_words(read, 320), 0, 0.0, root / "opt")
    torch.manual_seed(0)
    sizes = {"img_size": SIZE, "patch_size": 8, "embed_dim": WIDTH, "depth": 2, "num_heads": 2}
    vision = timm.create_model("vit_tiny_patch16_224", num_classes=0, **sizes)
    torch.nn.init.normal_(vision.pos_embed, std=1.0)
    save_for_hf(vision, root / "vision", model_args=sizes, safe_serialization=True)
    return root


def view(image: bytes) -> Tensor:
    return eval_transform(SIZE)(decode(image))


def built(cfg: Blip2Stage2Config | Blip2VQAConfig, frozen: Path, train: Sequence[Sample]) -> EvaluableTask:
    asked = [q["question"].replace("?", "") for sample in train for q in sample.meta["questions"]]
    tokenizer = Tokenizer.train([*asked, *(text for sample in train for text in sample.texts)], 256)
    special = {name: getattr(tokenizer, name) for name in ("pad", "cls", "sep", "dec", "enc")}
    model = Blip2Config(
        vision=ImageEncoderConfig(source=str(frozen / "vision"), size=SIZE, width=WIDTH, layer=-1, trained=True),
        text=small_text(tokenizer.vocab_size - 1),
        queries=4,
        tokens=SpecialTokens(**special),
        language_model=LanguageModelConfig(source=str(frozen / "opt"), width=WIDTH),
    )
    torch.manual_seed(0)
    return cfg.build_task(cfg.build_model(model), tokenizer)


def fine_tune(task: EvaluableTask, samples: Sequence[Sample], steps: int, lr: float = 5e-3) -> None:
    optimizer = build_optimizer(task.train(), OptimizerConfig(lr=lr, layer_decay=0.95))
    assert len({group["scale"] for group in optimizer.param_groups}) > 1, "layers of the image encoder learn less"
    descend(task, optimizer, samples, view, steps, lr)
    task.eval()


def scores(task: EvaluableTask, test: Sequence[Sample]) -> Scores:
    task.eval()
    return dict(task.score(task.predict(task.collate([task.whole(sample, view) for sample in test]))))


def language_weights(task: EvaluableTask) -> list[Tensor]:
    return [p.clone() for p in task.model.language_model.network.parameters()]


def test_captions_become_true_and_the_image_encoder_learns(frozen: Path):
    train, test = samples("train", 300), samples("test", 100)
    task = built(Blip2Stage2Config(decoding=Beam(beams=1, min_length=3, max_length=12)), frozen, train)
    before, unchanged = scores(task, test), language_weights(task)
    patches = task.model.visual_encoder.network.patch_embed.proj.weight.clone()
    fine_tune(task, train, steps=80)
    after = scores(task, test)
    assert after["cider"] > before["cider"] + 200
    assert not patches.equal(task.model.visual_encoder.network.patch_embed.proj.weight)
    assert all(map(torch.equal, unchanged, language_weights(task)))


def test_answers_become_better_than_the_most_frequent_ones(frozen: Path):
    train, test = samples("train", 300), samples("test", 100)
    cfg = Blip2VQAConfig(ask_qformer=True, decoding=Beam(beams=1, min_length=1, max_length=3))
    task = built(cfg, frozen, train)
    before, unchanged = scores(task, test), language_weights(task)
    fine_tune(task, train, steps=80)
    after = scores(task, test)
    assert after["accuracy"] > max(before["accuracy"], after["chance"]) + 20
    assert all(map(torch.equal, unchanged, language_weights(task)))
