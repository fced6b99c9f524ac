"""The embedded data set: rendered scenes with ground truth.

A scene has one or two objects with shape, colour, size and place on a coloured ground. A small grammar generates
sentences about scenes and parses them, so whether a text is true can be decided; another one does the same for
questions and their answers. The truth is in `meta["truth"]`, for evaluation alone.
"""

from blip.datasets.shapes.questions import ANSWERS, KINDS, Question, answer, ask, ask_several
from blip.datasets.shapes.scenes import Scene, Thing, random_scene, render_scene
from blip.datasets.shapes.sentences import is_true, write_caption
from blip.datasets.shapes.splits import ShapesConfig, gold_samples, question_samples, test_samples, web_samples
from blip.datasets.shapes.tasks import ShapesTaskName, task_samples

__all__ = [
    "ANSWERS",
    "KINDS",
    "Question",
    "Scene",
    "ShapesConfig",
    "ShapesTaskName",
    "Thing",
    "answer",
    "ask",
    "ask_several",
    "gold_samples",
    "is_true",
    "question_samples",
    "random_scene",
    "render_scene",
    "task_samples",
    "test_samples",
    "web_samples",
    "write_caption",
]
