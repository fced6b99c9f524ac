"""Models of transformers and open_clip at tiny sizes with random weights, as folders."""

import json
from pathlib import Path

import open_clip
import torch
from safetensors.torch import save_file
from tiny_models import TEXTS
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BartConfig,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPVisionConfig,
    Florence2Config,
    Florence2ForConditionalGeneration,
    Florence2Processor,
    GemmaConfig,
    GitConfig,
    GitForCausalLM,
    GitProcessor,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PaliGemmaConfig,
    PaliGemmaForConditionalGeneration,
    PaliGemmaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    SiglipConfig,
    SiglipImageProcessor,
    SiglipModel,
    SiglipVisionConfig,
)

SIDE = 32
CHAT = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image> {% else %}{{ part['text'] }} {% endif %}{% endfor %}{% endfor %}says"
)


def words(*special: str, image_token: str = "") -> PreTrainedTokenizerFast:
    """A tokenizer of whole words."""
    known = [
        "<pad>",
        "<s>",
        "</s>",
        "<unk>",
        *special,
        "says",
        *sorted({word for text in TEXTS for word in text.split()}),
    ]
    backend = Tokenizer(models.WordLevel({word: i for i, word in enumerate(known)}, unk_token="<unk>"))
    backend.normalizer = normalizers.Lowercase()
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    backend.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    tokens = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    own = {"model_specific_special_tokens": {"image_token": image_token}} if image_token else {}
    return PreTrainedTokenizerFast(tokenizer_object=backend, extra_special_tokens=list(special), **tokens, **own)


def sizes(width: int = 16) -> dict[str, int]:
    return {"hidden_size": width, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}


def spread(model: torch.nn.Module, seed: int) -> torch.nn.Module:
    """Large random weights, so that what is read makes a difference."""
    torch.manual_seed(seed)
    for parameter in model.parameters():
        if parameter.dim() > 1:
            torch.nn.init.normal_(parameter, std=0.4)
    return model.eval()


def clip(folder: Path) -> Path:
    tokenizer = words()
    text = {**sizes(), "vocab_size": len(tokenizer), "max_position_embeddings": 12}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**sizes(), "image_size": SIDE, "patch_size": 16}
    model = CLIPModel(CLIPConfig(text_config={**text, **tokens}, vision_config=vision, projection_dim=8))
    spread(model, 5).save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def siglip(folder: Path) -> Path:
    tokenizer = words()
    text = {**sizes(), "vocab_size": len(tokenizer), "max_position_embeddings": 12, "projection_size": 16}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = {**sizes(), "image_size": SIDE, "patch_size": 16}
    model = SiglipModel(SiglipConfig(text_config={**text, **tokens}, vision_config=vision))
    spread(model, 6).save_pretrained(folder)
    SiglipImageProcessor(size={"height": SIDE, "width": SIDE}).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def git(folder: Path) -> Path:
    """Captions without a prompt or a chat."""
    tokenizer = words()
    vision = {**sizes(), "image_size": SIDE, "patch_size": 16}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    cfg = GitConfig(vision_config=vision, **sizes(), vocab_size=len(tokenizer), max_position_embeddings=64, **tokens)
    spread(GitForCausalLM(cfg), 7).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    GitProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def llava(folder: Path) -> Path:
    """Answers in a chat."""
    tokenizer = words("<image>")
    vision = CLIPVisionConfig(**sizes(), image_size=SIDE, patch_size=16)
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    text = LlamaConfig(
        **sizes(), vocab_size=len(tokenizer), max_position_embeddings=64, num_key_value_heads=2, **tokens
    )
    cfg = LlavaConfig(vision_config=vision, text_config=text, image_token_index=4, vision_feature_layer=-1)
    spread(LlavaForConditionalGeneration(cfg), 8).save_pretrained(folder)
    images = CLIPImageProcessor(size={"shortest_edge": SIDE}, crop_size=SIDE)
    LlavaProcessor(
        images,
        tokenizer,
        patch_size=16,
        vision_feature_select_strategy="default",
        chat_template=CHAT,
        num_additional_image_tokens=1,
    ).save_pretrained(folder)
    return folder


def qwen(folder: Path) -> Path:
    """Sees an image as a number of tokens that depends on its shape."""
    vision_tokens = ("<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>")
    tokenizer = words(*vision_tokens)
    ids = dict(zip(("vision_start", "vision_end", "image", "video"), range(4, 8), strict=True))
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    rope = {"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0}
    text = {**sizes(), "num_key_value_heads": 2, "vocab_size": len(tokenizer), "rope_parameters": rope, **tokens}
    vision = {"depth": 1, "embed_dim": 16, "num_heads": 2, "hidden_size": 16, "patch_size": 8, "mlp_ratio": 2}
    cfg = Qwen2VLConfig(
        text_config=text, vision_config=vision, **{f"{name}_token_id": number for name, number in ids.items()}
    )
    spread(Qwen2VLForConditionalGeneration(cfg), 10).save_pretrained(folder)
    pixels = {"patch_size": 8, "min_pixels": 16 * 16, "max_pixels": 64 * 64}
    chat = CHAT.replace("<image> ", "<|vision_start|> <|image_pad|> <|vision_end|> ")
    images, videos = Qwen2VLImageProcessor(**pixels), Qwen2VLVideoProcessor(**pixels)
    Qwen2VLProcessor(images, tokenizer, videos, chat_template=chat).save_pretrained(folder)
    return folder


def florence(folder: Path) -> Path:
    """Reads an image and the name of a task by an encoder, and writes by a decoder."""
    tokenizer = words("<image>", image_token="<image>")
    vision = {
        "depths": [1, 1],
        "patch_size": [7, 3],
        "patch_stride": [4, 4],
        "patch_padding": [3, 1],
        "patch_prenorm": [False, True],
        "embed_dim": [8, 16],
        "num_heads": [2, 2],
        "num_groups": [2, 2],
        "window_size": 4,
        "projection_dim": 16,
    }
    layers = {f"{side}_{what}": 1 for side in ("encoder", "decoder") for what in ("layers", "attention_heads")}
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "decoder_start_token_id": 2}
    widths = {"d_model": 16, "encoder_ffn_dim": 32, "decoder_ffn_dim": 32, "max_position_embeddings": 64}
    text = BartConfig(**layers, **tokens, **widths, vocab_size=len(tokenizer))
    cfg = Florence2Config(vision_config=vision, text_config=text.to_dict(), image_token_id=4)
    spread(Florence2ForConditionalGeneration(cfg), 11).save_pretrained(folder)
    side = {"height": SIDE, "width": SIDE}
    images = CLIPImageProcessor(size=side, crop_size=side, do_center_crop=False, image_seq_length=5)
    Florence2Processor(images, tokenizer, num_additional_image_tokens=1).save_pretrained(folder)
    return folder


def paligemma(folder: Path) -> Path:
    """Reads a prompt, without a chat."""
    tokenizer = words("<image>")
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    vision = SiglipVisionConfig(**sizes(), image_size=SIDE, patch_size=16, projection_dim=16)
    text = GemmaConfig(**sizes(), num_key_value_heads=1, head_dim=8, vocab_size=len(tokenizer), **tokens)
    parts = {"vision_config": vision.to_dict(), "text_config": text.to_dict()}
    cfg = PaliGemmaConfig(**parts, image_token_index=4, projection_dim=16, hidden_size=16)
    spread(PaliGemmaForConditionalGeneration(cfg), 12).save_pretrained(folder)
    images = SiglipImageProcessor(size={"height": SIDE, "width": SIDE})
    images.image_seq_length = 4
    PaliGemmaProcessor(images, tokenizer).save_pretrained(folder)
    return folder


def openai_clip(folder: Path) -> Path:
    """A folder of open_clip, with its own tokenizer of byte pairs."""
    folder.mkdir(parents=True)
    text = {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
    vision = {"image_size": SIDE, "layers": 1, "width": 16, "patch_size": 16, "head_width": 8}
    cfg = {"embed_dim": 8, "vision_cfg": vision, "text_cfg": text}
    preprocess = {"mean": [0.5] * 3, "std": [0.5] * 3, "interpolation": "bicubic", "resize_mode": "shortest"}
    (folder / "open_clip_config.json").write_text(json.dumps({"model_cfg": cfg, "preprocess_cfg": preprocess}))
    model = spread(open_clip.CLIP(**cfg), 9)
    save_file(dict(model.state_dict()), folder / "open_clip_model.safetensors")
    return folder
