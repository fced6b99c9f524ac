"""BLIP-2 as captioner, from its second stage on, and as filter, from its first (BLIP-2, section 3.4)."""

from collections.abc import Sequence

from torch import Tensor, nn

from blip.data.tokenizer import clean_caption
from blip.models.blip2 import QueriedImages
from blip.models.generation import Decoding, Nucleus
from blip.tasks.blip2_stage1 import Blip2Stage1
from blip.tasks.blip2_stage2 import Blip2Stage2
from blip.zoo.contract import ImageBatch, Scored, ScoreName, Written
from blip.zoo.draws import sample_uniforms
from blip.zoo.image_model import ImageModel, Precision
from blip.zoo.ours import padded


class Blip2Model(ImageModel[QueriedImages]):
    """A model with the image tokens of a batch."""

    @property
    def encoder(self) -> nn.Module:
        return self.model

    def image_tokens(self, pixels: Tensor) -> Tensor:
        return self.model.encode_image(pixels)


class Blip2Captioner(Blip2Model):
    """Writes texts by the frozen language model, which depend only on the image, its key, the seed and the model.

    Lengths of the decoding are of new tokens, without the prompt.
    """

    def __init__(self, task: Blip2Stage2, decoding: Decoding, seed: int = 42, precision: Precision = "float32"):
        """Raises ConfigError if prompt and text exceed what the language model can read."""
        task.check(decoding)
        super().__init__(task.model, precision)
        self.task, self.decoding, self.seed = task, decoding, seed

    def write(self, images: ImageBatch, keys: Sequence[str], number: int) -> list[Written]:
        tokens, language = self.encode(images), self.task.model.language_model
        draws = None
        if isinstance(self.decoding, Nucleus):
            draws = sample_uniforms(padded(keys, images.batch), self.seed, number, self.decoding.max_length)
            draws = draws.to(self.device)
        with self.computing(images, "decode"):
            soft = self.task.model.soft_prompts(tokens)
            given = [self.task.cfg.prompt] * images.batch
            written = language.generate(soft, given, self.decoding, draws, self.task.cfg.text.tokens)
            texts = language.decode(written.ids[: len(images)])
        return [Written(*row) for row in zip(texts, written.log_probability.tolist()[: len(images)], strict=True)]


class Blip2Filter(Blip2Model):
    """Scores texts by ITM, the mean over queries, and by ITC, the best query."""

    gives: tuple[ScoreName, ...] = ("match", "similarity")

    def __init__(self, task: Blip2Stage1, precision: Precision = "float32"):
        super().__init__(task.model, precision)
        self.task = task

    def score(self, images: ImageBatch, texts: Sequence[Sequence[str]]) -> list[list[Scored]]:
        model, tokens = self.task.model, self.encode(images)
        with self.computing(images, "encode"):
            cross = model.qformer.cross_keys_values(tokens)
            image = model.image_feature(model.qformer.encode_image(cross)[0]).float()
        found: list[list[Scored]] = [[] for _ in texts]
        for number in range(max(map(len, texts), default=0)):
            asked = [some[number] if number < len(some) else "" for some in texts]
            with self.computing(images, "filter"):
                text = self.task.tokenizer.encode(
                    [clean_caption(t, self.task.cfg.text.words) for t in padded(asked, images.batch)],
                    self.task.cfg.text.tokens,
                    "max",  # one length, so that a score depends on no other text of its batch
                ).to(self.device)
                feature = model.text_feature(model.qformer.encode_text(text)).float()
                similarity = (image @ feature[:, :, None])[:, :, 0].amax(1)
                match = model.match(text, cross).float().softmax(1)[:, 1]
            for row, scores in enumerate(zip(match.tolist(), similarity.tolist(), strict=True)):
                if row < len(texts) and number < len(texts[row]):
                    found[row].append(Scored(*scores))
        return found
