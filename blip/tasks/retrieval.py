"""Retrieval: which text belongs to which image; the filter is this task (BLIP, sections 3.3 and 5.1)."""

from collections.abc import Mapping
from typing import Any, Literal

import torch
from pydantic import Field
from torch import Tensor, nn

from blip.batch import Batch, Example, Tokens
from blip.config import Config
from blip.data.tokenizer import Tokenizer, clean_caption
from blip.data.transforms import normalise
from blip.distributed import all_reduce_sum, rank
from blip.metrics.retrieval import recalls
from blip.models.bert import KeysValues
from blip.models.med import MED
from blip.tasks.alignment import Alignment, AlignmentConfig
from blip.tasks.task import Task
from blip.tasks.text import TextLengths


class RetrievalConfig(Config):
    type: Literal["retrieval"] = "retrieval"
    alignment: AlignmentConfig = AlignmentConfig(same_image="positive", compare_with="student", floor=0.0, alpha_epochs=1.0)
    text: TextLengths = TextLengths(words=30, tokens=35, pad="max")
    rerank: int = Field(default=256, ge=0)
    """Candidates of each query, the best by ITC, whose score is ITM's logit plus the similarity; 0 leaves ITC alone."""
    chunk: int = Field(default=64, ge=1)
    """Pairs that ITM looks at together when re-ranking."""


class Retrieval(Task[MED]):
    """The model learns to align and to match images and texts."""

    momentum_teacher = True
    scored_together = True

    def __init__(self, cfg: RetrievalConfig, model: MED, tokenizer: Tokenizer):
        super().__init__()
        self.cfg = cfg
        self.model = model
        self.tokenizer = tokenizer
        self.alignment = Alignment(cfg.alignment, model)
        self.seen: list[Tensor] = []

    def on_step(self, step: int, steps_per_epoch: int) -> list[nn.Parameter]:
        return self.alignment.on_step(self.model, step, steps_per_epoch)

    def after_step(self) -> None:
        self.alignment.after_step()

    def tokens(self, texts: list[str]) -> Tokens:
        """Cleans and encodes texts as in training: a filter must read what it was taught to read."""
        return self.tokenizer.encode([clean_caption(t, self.cfg.text.words) for t in texts], self.cfg.text.tokens, self.cfg.text.pad)

    def collate(self, examples: list[Example]) -> Batch:
        return Batch.of(examples, self.tokens([e.texts[0] for e in examples]), texts=[e.texts for e in examples])

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        text, ids = batch.text, batch.image_ids
        assert text is not None
        assert ids is not None
        model = self.model
        images = normalise(batch.images)
        image_tokens = model.encode_image(images)
        hidden = model.encode_text(text)
        itc, i2t, t2i = self.alignment.contrast(model.image_feature(image_tokens), model.text_feature(hidden), images, text, ids)
        cross = model.text_encoder.cross_keys_values(image_tokens)
        return {"itc": itc, "itm": self.alignment.match(model, text, image_tokens, cross, i2t, t2i, ids)}

    @torch.no_grad()
    def match(self, images: Tensor, texts: list[str]) -> tuple[Tensor, Tensor]:
        """p(match) `(B,)` and cosine similarity `(B,)` of uint8 images `(B, 3, H, W)` and a text each (BLIP, section 3.3)."""
        image_tokens = self.model.encode_image(normalise(images))
        return self.match_tokens(image_tokens, self.model.text_encoder.cross_keys_values(image_tokens), texts)

    @torch.no_grad()
    def match_tokens(self, image_tokens: Tensor, cross: list[KeysValues], texts: list[str]) -> tuple[Tensor, Tensor]:
        """As `match`, of image tokens `(B, N, D)` and their cross-attention's keys and values: several texts cost one image."""
        text = self.tokens(texts).to(image_tokens.device)
        similarity = (self.model.image_feature(image_tokens) * self.model.text_feature(self.model.encode_text(text))).sum(1)
        return self.model.match(text, cross).float().softmax(1)[:, 1], similarity.float()

    @torch.no_grad()
    def predict(self, batch: Batch) -> list[dict[str, Any]]:
        """Features of each image and of all its texts; the image's tokens stay with this process, for the re-ranking."""
        image_tokens = self.model.encode_image(normalise(batch.images))
        features = self.model.image_feature(image_tokens).cpu()
        predictions = []
        for i, (key, texts) in enumerate(zip(batch.keys, batch.extra["texts"], strict=True)):
            text = self.tokens(texts).to(image_tokens.device)
            text_features = self.model.text_feature(self.model.encode_text(text)).cpu()
            predictions.append({"key": key, "texts": texts, "image": features[i], "text": text_features, "seen": (rank(), len(self.seen))})
            self.seen.append(image_tokens[i].cpu())
        return predictions

    def score(self, predictions: list[dict[str, Any]]) -> dict[str, float]:
        """R@1, 5, 10 in percent, text retrieval (`tr*`) and image retrieval (`ir*`), after re-ranking by ITM.

        All processes call it together, with all their predictions; each looks at the images that it has predicted.
        """
        image = torch.stack([p["image"] for p in predictions])
        text = torch.cat([p["text"] for p in predictions])
        owner = torch.tensor([i for i, p in enumerate(predictions) for _ in p["texts"]])
        similarity = image.float() @ text.float().T
        tokens = {i: self.seen[p["seen"][1]] for i, p in enumerate(predictions) if p["seen"][0] == rank()}
        self.seen = []
        texts = self.tokens([t for p in predictions for t in p["texts"]])
        return recalls(self.rerank(similarity, tokens, texts), self.rerank(similarity.T, tokens, texts, queries="texts"), owner)

    @torch.no_grad()
    def rerank(
        self, similarity: Tensor, tokens: Mapping[int, Tensor], texts: Tokens, queries: Literal["images", "texts"] = "images"
    ) -> Tensor:
        """Scores `(Q, N)`: the best `rerank` candidates of each query by ITC get ITM's logit plus the similarity, the rest stay below.

        `tokens` `(N, D)` are those of this process's images by their number; queries are the rows of `similarity`. Collective.
        """
        k = min(self.cfg.rerank, similarity.shape[1])
        if k == 0:
            return similarity
        device = next(self.model.parameters()).device
        scores = similarity - 1e4  # unscored pairs stand below scored ones, in the order of ITC
        best, candidates = similarity.topk(k, dim=1)
        rows = torch.arange(len(similarity))[:, None].expand_as(candidates).flatten()
        columns = candidates.flatten()
        image_rows, text_rows = (rows, columns) if queries == "images" else (columns, rows)
        cross = self.model.text_encoder.cross_keys_values
        logits = torch.zeros(len(rows), device=device)
        own = torch.isin(image_rows, torch.tensor(list(tokens), dtype=torch.long)).nonzero()[:, 0]
        for part in own.split(self.cfg.chunk) if len(own) else ():  # of nothing, split would make one part
            kept, where = image_rows[part].unique(return_inverse=True)  # an image's keys and values are made once a chunk
            keys_values = [(k[where], v[where]) for k, v in cross(torch.stack([tokens[i] for i in kept.tolist()]).to(device))]
            logits[part] = self.model.match(texts[text_rows[part]].to(device), keys_values)[:, 1].float()
        scores[rows, columns] = all_reduce_sum(logits).cpu() + best.flatten()
        return scores
