"""The steps that all pipelines of BLIP-2 have: both stages, their evaluation, and the gate."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from kfp import dsl

from components.cache_features import cache_features
from components.evaluate import evaluate
from components.register import register
from components.train import train
from pipelines.placement import on_cpu, on_placement

STAGES = {"opt": "blip2_stage2", "t5": "blip2_stage2_t5"}
"""The second stage of each language model: a decoder-only one, and one with an encoder."""


class Judged(NamedTuple):
    """The outputs of a training of the second stage and of its evaluation."""

    model: Any
    scores: Any


@dataclass(frozen=True)
class Blip2Steps:
    """The steps of a pipeline; what `data` names them by is the end of their names."""

    settings: Mapping[str, Any]
    """The outputs of the plan."""
    shared: Mapping[str, Any]
    """What all steps take."""
    test: Any
    """The data folder with the test split."""
    frozen: Any
    """The frozen models."""

    def small(self, task: dsl.PipelineTask, name: str) -> Any:
        """Places a step that neither trains nor predicts, and returns its output."""
        return on_cpu(task, name).outputs["Output"]

    def large(self, task: dsl.PipelineTask, name: str) -> Any:
        """Places a step that trains or predicts, and returns its output."""
        return on_placement(task, name, self.settings).outputs["Output"]

    def first_stage(self, data: Any, end: str = "") -> Any:
        """Returns the model of the first stage, on the features of `data` if its settings ask for them."""
        stage = {**self.shared, "stage": "blip2_stage1", "settings": self.settings["blip2_stage1"]}
        features = self.large(cache_features(**stage, data=data, frozen=self.frozen), f"features{end}")
        return self.large(train(**stage, data=features, frozen=self.frozen), f"stage1{end}")

    def second_stage(self, kind: str, data: Any, end: str = "", **init: Any) -> Judged:
        """Returns the model of the second stage for a kind of language model, and its scores."""
        stage = {**self.shared, "stage": STAGES[kind], "settings": self.settings[STAGES[kind]]}
        model = self.large(train(**stage, data=data, frozen=self.frozen, **init), f"stage2-{kind}{end}")
        judged = evaluate(**self.shared, data=self.test, settings=self.settings["evaluate"], model=model)
        return Judged(model, self.large(judged, f"evaluate-{kind}{end}"))

    def gate(self, name: str, kind: str, model: Judged, other: Judged) -> Any:
        """Returns the decision whether a model replaces the champion `NAME-KIND`; it must beat the `other` one, too."""
        gate = {"name": name, "variant": kind, "model": model.model, "before": other.scores, "after": model.scores}
        return self.small(register(**self.shared, settings=self.settings["register"], **gate), f"register-{kind}")
