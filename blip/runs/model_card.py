"""The model card of an export to transformers: Python code that uses the model as it was trained."""

from blip.data.tokenizer import CAPTION_PUNCTUATION
from blip.models.generation import Beam
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.config import TaskConfig
from blip.tasks.model_folder import as_captioner, as_filter
from blip.tasks.vqa import VQAConfig

HEAD = """---
library_name: transformers
tags: [blip]
---

# {kind}

Written by `blip export --format hf`. Pictures need `convert("RGB")`; transparent ones look as people see them once they
lie on white.
Texts are cleaned as in training: lower case, without punctuation, at most {words} words.
"""

LOAD = """
```python
import re

import torch
from PIL import Image
from transformers import {kind}, BlipProcessor


def clean(text):
    text = re.sub(r{punctuation!r}, {gap!r}, text.lower())
    return " ".join(text.split()[:{words}])


folder = "."  # where this file lies
model = {kind}.from_pretrained(folder).eval()
processor = BlipProcessor.from_pretrained(folder)
image = Image.open("photo.jpg").convert("RGB")
"""

MATCHING = """
## How well a text matches an image

p(match) needs a text that begins with {first}: the processor of this folder puts it there. A processor of another model
puts [CLS], and p(match) is then wrong without an error; in that case set
`inputs["input_ids"][:, 0] = {first_id}` first.
{load}text = clean("A red circle!")
inputs = processor(images=image, text=text, truncation=True, max_length={tokens}, return_tensors="pt")
with torch.no_grad():
    p_match = model(**inputs).itm_score.softmax(-1)[0, 1].item()
    # the similarity of image and text, of features of their own, is read from a text that begins with [CLS]
    inputs["input_ids"][:, 0] = {cls_id}
    similarity = model(**inputs, use_itm_head=False).itm_score[0, 0].item()
print(p_match, similarity)
```
"""

CAPTIONING = """
## A caption of an image

{prompt_words}
{load}inputs = processor(images=image, text={prompt!r}, return_tensors="pt")
ids = model.generate(
    **inputs, num_beams={beams}, min_length={min_length}, max_length={max_length}, length_penalty={length_penalty}
)
prompt = inputs["input_ids"].shape[1] - 1  # without [SEP], after which nothing would be written
print(processor.decode(ids[0, prompt:], skip_special_tokens=True))
```
"""

ANSWERING = """
## An answer to a question

A question begins with [ENC]: the processor of this folder puts it there. A processor of another model puts [CLS], which
gives other answers; in that case set `inputs["input_ids"][:, 0] = {first_id}` first.
{load}question = clean("What is red?")
inputs = processor(images=image, text=question, truncation=True, max_length={tokens}, return_tensors="pt")
ids = model.generate(**inputs, num_beams={beams}, min_length={min_length}, max_length={max_length})
print(processor.decode(ids[0], skip_special_tokens=True))
```
"""


def model_card(kind: str, cfg: TaskConfig, first: str, first_id: int, cls_id: int) -> str:
    """Returns the card of a transformers class; `first` is the first token of texts that attend to the image."""
    match kind:
        case "BlipForImageTextRetrieval":
            text = as_filter(cfg).text
            body = MATCHING.format(
                load=loading_code(kind, text.words), first=first, first_id=first_id, cls_id=cls_id, tokens=text.tokens
            )
            return HEAD.format(kind=kind, words=text.words) + body
        case "BlipForConditionalGeneration":
            return captioning(kind, as_captioner(cfg))
        case _:
            assert isinstance(cfg, VQAConfig)
            words, tokens = cfg.question.words, cfg.question.tokens
            beam = cfg.decoding.model_dump(include={"beams", "min_length", "max_length"})
            body = ANSWERING.format(load=loading_code(kind, words, gap=""), first_id=first_id, tokens=tokens, **beam)
            return HEAD.format(kind=kind, words=words) + body


def captioning(kind: str, cfg: CaptioningConfig) -> str:
    beam = cfg.decoding if isinstance(cfg.decoding, Beam) else Beam()
    prompt = cfg.prompt.strip()
    said = (
        f"It goes on from the prompt {prompt!r}, which is cut off again."
        if prompt
        else "It was trained without a prompt: the text is empty."
    )
    body = CAPTIONING.format(
        load=loading_code(kind, cfg.text.words),
        prompt_words=said,
        prompt=prompt,
        **beam.model_dump(include={"beams", "min_length", "max_length", "length_penalty"}),
    )
    return HEAD.format(kind=kind, words=cfg.text.words) + body


def loading_code(kind: str, words: int, gap: str = " ") -> str:
    return LOAD.format(kind=kind, punctuation=CAPTION_PUNCTUATION.pattern, gap=gap, words=words)
