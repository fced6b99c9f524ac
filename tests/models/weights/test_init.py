"""Initial weights of ViT and BERT from a file, a folder, a store and a hub's cache."""

import shutil
from pathlib import Path

import httpx2
import huggingface_hub.constants
import pytest
import timm
import torch
from fake_hub import fake_hub, use_hub
from huggingface_hub.errors import HfHubHTTPError
from torch import Tensor
from transformers import BertConfig, BertForPreTraining

from blip.models.med import MED, MEDConfig
from blip.models.vision import VisionConfig
from blip.models.weights.export import official_tensors
from blip.models.weights.files import WeightsError, write_tensors
from blip.models.weights.init import IMAGENET, NEW_TOKENS, WORDS, InitConfig, init_weights
from blip.models.weights.load import fill, load_weights
from blip.models.weights.names import bert as bert_names
from blip.models.weights.names import timm as timm_names
from blip.models.weights.places import can_pass
from blip.models.weights.source import fetched
from blip.storage import StoreError, open_store


@pytest.fixture
def imagenet(small: MEDConfig) -> dict[str, Tensor]:
    """A classifier of timm with larger images than ours."""
    torch.manual_seed(2)
    v = small.vision
    vit = timm.models.VisionTransformer(
        img_size=2 * v.size, patch_size=v.patch, embed_dim=v.width, depth=v.depth, num_heads=v.heads, num_classes=7
    )
    return vit.state_dict()


@pytest.fixture
def bert(small: MEDConfig) -> BertForPreTraining:
    torch.manual_seed(3)
    t = small.text
    return BertForPreTraining(
        BertConfig(
            vocab_size=t.vocab_size - 2,
            hidden_size=t.width,
            num_hidden_layers=t.depth,
            num_attention_heads=t.heads,
            intermediate_size=t.feed_forward,
            max_position_embeddings=t.positions,
            initializer_range=0.3,
        )
    )


def test_the_image_encoder_starts_from_timm(small: MEDConfig, imagenet: dict[str, Tensor], tmp_path: Path):
    write_tensors(imagenet, tmp_path / "vit.pth")
    model = MED(small)
    [report] = init_weights(model, InitConfig(vision=str(tmp_path / "vit.pth")))
    assert model.visual_encoder.get_parameter("blocks.1.mlp.fc1.weight").equal(imagenet["blocks.1.mlp.fc1.weight"])
    assert model.visual_encoder.norm.get_parameter("weight").equal(imagenet["norm.weight"])
    assert dict(report.resized) == {"visual_encoder.pos_embed": "(1, 17, 24) -> (1, 5, 24)"}
    assert set(report.unused) == {"head.weight", "head.bias"}


def test_the_texts_start_from_bert_with_two_more_words(small: MEDConfig, bert: BertForPreTraining, tmp_path: Path):
    bert.save_pretrained(tmp_path)
    model = MED(small)
    words = model.text_encoder.embeddings.word.weight.detach().clone()
    crossing = model.get_parameter("text_decoder.layers.0.cross_attention.key.weight").detach().clone()
    [report] = init_weights(model, InitConfig(text=str(tmp_path)))
    for part in (model.text_encoder, model.text_decoder):
        torch.testing.assert_close(part.embeddings.word.weight[:-2], bert.bert.embeddings.word_embeddings.weight)
        assert part.embeddings.word.weight[-2:].equal(words[-2:]), "the rows of [DEC] and [ENC] stay random"
        query = part.get_parameter("layers.1.self_attention.query.weight")
        assert query.equal(bert.get_parameter("bert.encoder.layer.1.attention.self.query.weight"))
    assert model.lm_head.dense.weight.equal(bert.get_parameter("cls.predictions.transform.dense.weight"))
    assert model.lm_head.decoder.weight is model.text_decoder.embeddings.word.weight
    assert model.get_parameter("text_decoder.layers.0.cross_attention.key.weight").equal(crossing), (
        "BERT has seen no images"
    )
    assert all("cross_attention" in n or n.startswith(("visual", "vision", "text_proj", "itm")) for n in report.missing)
    assert "token_type_embeddings" in " ".join(report.unused)
    assert any("(17, 16) -> (19, 16)" in change for change in report.resized.values())


def test_a_text_read_alone_is_what_bert_reads(small: MEDConfig, bert: BertForPreTraining, tmp_path: Path):
    bert.bert.embeddings.token_type_embeddings.weight.data.zero_()  # BLIP has none
    bert.save_pretrained(tmp_path)
    model = MED(small).eval()
    init_weights(model, InitConfig(text=str(tmp_path)))
    ids = torch.tensor([[1, 5, 6, 2]])
    theirs = bert.eval().bert(ids).last_hidden_state
    ours = model.text_encoder(ids, None)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_old_berts_call_weights_gamma(small: MEDConfig, bert: BertForPreTraining, tmp_path: Path):
    def old(name: str) -> str:
        return name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")

    tensors = {old(name): tensor for name, tensor in bert.state_dict().items()}
    tensors["bert.embeddings.LayerNorm.gamma"] = torch.arange(16.0)
    torch.save(tensors, tmp_path / "pytorch_model.bin")
    model = MED(small)
    init_weights(model, InitConfig(text=str(tmp_path)))
    assert model.text_encoder.embeddings.norm.weight.equal(torch.arange(16.0))


def test_a_bert_with_another_vocabulary_does_not_fit(small: MEDConfig, bert: BertForPreTraining, tmp_path: Path):
    bert.save_pretrained(tmp_path)
    other = small.model_copy(update={"text": small.text.model_copy(update={"vocab_size": 30})})
    with pytest.raises(WeightsError, match=r"embeddings\.word\.weight \(17, 16\) -> \(30, 16\)"):
        init_weights(MED(other), InitConfig(text=str(tmp_path)))


def test_a_checkpoint_has_the_last_word(small: MEDConfig, imagenet: dict[str, Tensor], tmp_path: Path):
    trained = MED(small, encoder=False)
    write_tensors(imagenet, tmp_path / "vit.pth")
    write_tensors(official_tensors(trained), tmp_path / "blip.pth")
    model = MED(small, encoder=False)
    reports = init_weights(model, InitConfig(vision=str(tmp_path / "vit.pth"), checkpoint=str(tmp_path / "blip.pth")))
    assert [report.source for report in reports] == [str(tmp_path / "vit.pth"), str(tmp_path / "blip.pth")]
    assert model.visual_encoder.norm.get_parameter("weight").equal(trained.visual_encoder.norm.get_parameter("weight"))


def test_nothing_given_starts_at_random(small: MEDConfig):
    assert init_weights(MED(small), InitConfig()) == []


def test_weights_come_from_a_bucket_by_file_and_by_folder(small: MEDConfig, tmp_path: Path, s3: str):
    trained = MED(small, encoder=False)
    for name in ("model.safetensors", "blip.pth"):
        write_tensors(official_tensors(trained), tmp_path / name)
        open_store(s3).put_file(f"base/{name}", tmp_path / name)
    for source in (f"{s3}/base/blip.pth", f"{s3}/base"):
        model = MED(small, encoder=False)
        load_weights(model, source)
        assert model.lm_head.dense.weight.equal(trained.lm_head.dense.weight)
    with pytest.raises(WeightsError, match="nowhere"):
        load_weights(MED(small), f"{s3}/nowhere")
    with pytest.raises(StoreError, match=r"nowhere\.pth"):
        load_weights(MED(small), f"{s3}/nowhere.pth")


def put_into_cache(cache: Path, name: str, weights: Path) -> None:
    """Puts a file where the hub's client puts a download."""
    repository, revision = cache / f"models--{name.replace('/', '--')}", "0123456789abcdef0123456789abcdef01234567"
    (repository / "snapshots" / revision).mkdir(parents=True)
    shutil.copy(weights, repository / "snapshots" / revision)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(revision)


@pytest.mark.parametrize("where", ["hub", "mirror", "folder", "store"])
@pytest.mark.parametrize("name", ["deit_base_patch16_224.fb_in1k", "vit_large_patch16_224.augreg_in21k"])
def test_images_and_texts_start_by_hub_name_folder_and_store_without_a_network(
    small: MEDConfig,
    imagenet: dict[str, Tensor],
    bert: BertForPreTraining,
    where: str,
    name: str,
    tmp_path: Path,
    s3: str,
    monkeypatch: pytest.MonkeyPatch,
):
    (tmp_path / "vit").mkdir()
    write_tensors(imagenet, tmp_path / "vit" / "model.safetensors")
    bert.save_pretrained(tmp_path / "bert")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    match where:
        case "hub":
            put_into_cache(tmp_path / "cache", f"timm/{name}", tmp_path / "vit" / "model.safetensors")
            put_into_cache(tmp_path / "cache", "google-bert/bert-base-uncased", tmp_path / "bert" / "model.safetensors")
            cfg = InitConfig(vision=name, text="google-bert/bert-base-uncased")
        case "mirror":
            for part, file in ((f"timm/{name}", "vit"), ("google-bert/bert-base-uncased", "bert")):
                path = tmp_path / file / "model.safetensors"
                open_store(s3).put_file(f"weights/{part}/model.safetensors", path)
            monkeypatch.setenv("BLIP_WEIGHTS", f"{s3}/weights")
            cfg = InitConfig(vision=name, text="google-bert/bert-base-uncased")
        case "folder":
            cfg = InitConfig(vision=str(tmp_path / "vit"), text=str(tmp_path / "bert"))
        case _:
            for part in ("vit", "bert"):
                open_store(s3).put_file(f"{part}/model.safetensors", tmp_path / part / "model.safetensors")
            cfg = InitConfig(vision=f"{s3}/vit", text=f"{s3}/bert/model.safetensors")
    model = MED(small)
    init_weights(model, cfg)
    assert model.visual_encoder.get_parameter("blocks.1.attn.qkv.weight").equal(imagenet["blocks.1.attn.qkv.weight"])
    assert model.lm_head.dense.weight.equal(bert.get_parameter("cls.predictions.transform.dense.weight"))


@pytest.mark.parametrize(
    ("name", "vision"),
    [
        ("deit_base_patch16_224.fb_in1k", VisionConfig()),
        ("vit_base_patch16_224.augreg_in21k", VisionConfig()),
        ("vit_large_patch16_224.augreg_in21k", VisionConfig(width=1024, depth=24, heads=16)),
    ],
)
def test_the_papers_image_encoders_have_timms_tensors(name: str, vision: VisionConfig):
    with torch.device("meta"):
        theirs, model = timm.create_model(name), MED(MEDConfig(vision=vision), encoder=False)
    report = fill(model, theirs.state_dict(), timm_names, name, IMAGENET)
    assert set(report.loaded) == {name for name, _ in model.named_parameters() if name.startswith("visual_encoder.")}
    assert set(report.unused) == {"head.weight", "head.bias"}
    assert not report.resized


def test_bert_base_has_the_shapes_of_the_papers_texts():
    with torch.device("meta"):
        theirs, model = BertForPreTraining(BertConfig()).state_dict(), MED(MEDConfig())
    for name, parameter in model.named_parameters():
        if name.startswith(("text_decoder", "text_encoder", "lm_head")) and "cross_attention" not in name:
            [*spelt] = bert_names(name)
            assert spelt, name
            for key in spelt:
                new = max(NEW_TOKENS) if key in WORDS else 0
                assert (theirs[key].shape[0] + new, *theirs[key].shape[1:]) == tuple(parameter.shape), name


@pytest.mark.parametrize("prefix", ["module.", "backbone.model."])
def test_parts_start_from_files_with_a_prefix(
    small: MEDConfig, imagenet: dict[str, Tensor], bert: BertForPreTraining, prefix: str, tmp_path: Path
):
    write_tensors({prefix + name: tensor for name, tensor in imagenet.items()}, tmp_path / "vit.pth")
    write_tensors({prefix + name: tensor for name, tensor in bert.state_dict().items()}, tmp_path / "bert.pth")
    model = MED(small)
    init_weights(model, InitConfig(vision=str(tmp_path / "vit.pth"), text=str(tmp_path / "bert.pth")))
    assert model.visual_encoder.get_parameter("blocks.1.attn.qkv.weight").equal(imagenet["blocks.1.attn.qkv.weight"])
    assert model.lm_head.dense.weight.equal(bert.get_parameter("cls.predictions.transform.dense.weight"))


@pytest.mark.parametrize(("status", "error"), [(503, StoreError), (404, WeightsError), (403, WeightsError)])
def test_a_hub_that_fails_is_worth_another_try_and_one_that_says_no_is_not(
    status: int, error: type[Exception], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with fake_hub(tmp_path, monkeypatch) as hub:
        hub.status["timm/nothing"] = status
        with pytest.raises(error, match="timm/nothing") as raised, fetched("timm/nothing"):
            pass
    assert "\n" not in str(raised.value)


def test_a_hub_that_is_away_is_worth_another_try(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    use_hub(tmp_path, "http://127.0.0.1:9", monkeypatch)
    with pytest.raises(StoreError, match="does not answer") as raised, fetched("timm/nothing"):
        pass
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("status", "passes"), [(500, True), (503, True), (429, True), (408, True), (401, False), (404, False)]
)
def test_statuses_that_pass(status: int, passes: bool):
    response = httpx2.Response(status, request=httpx2.Request("HEAD", "http://hub"))
    assert can_pass(HfHubHTTPError("no", response=response)) is passes
    assert can_pass(TimeoutError())


def test_weights_that_are_nowhere_are_named_with_what_was_tried(
    small: MEDConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(WeightsError) as error:
        init_weights(MED(small), InitConfig(vision="deit_base_patch16_224.fb_in1k"))
    message = str(error.value)
    assert "weights 'deit_base_patch16_224.fb_in1k'" in message
    assert f"the hub's cache {tmp_path} does not have it" in message
    assert "HF_HUB_OFFLINE" in message
    with pytest.raises(WeightsError, match=r"\./here/model\.pth.*no such file"):
        init_weights(MED(small), InitConfig(checkpoint="./here/model.pth"))
