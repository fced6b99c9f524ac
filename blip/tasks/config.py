"""The settings of any task, told apart by `type`."""

from typing import Annotated

from pydantic import Field

from blip.tasks.blip2_retrieval import Blip2RetrievalConfig
from blip.tasks.blip2_stage1 import Blip2Stage1Config
from blip.tasks.blip2_stage2 import Blip2Stage2Config
from blip.tasks.blip2_vqa import Blip2VQAConfig
from blip.tasks.captioning import CaptioningConfig
from blip.tasks.dialog import DialogConfig
from blip.tasks.nlvr import NLVRConfig
from blip.tasks.pretraining import PretrainingConfig
from blip.tasks.retrieval import RetrievalConfig
from blip.tasks.video import VideoQAConfig, VideoRetrievalConfig
from blip.tasks.vqa import VQAConfig

TaskConfig = Annotated[
    PretrainingConfig
    | CaptioningConfig
    | RetrievalConfig
    | VQAConfig
    | NLVRConfig
    | DialogConfig
    | VideoRetrievalConfig
    | VideoQAConfig
    | Blip2Stage1Config
    | Blip2Stage2Config
    | Blip2VQAConfig
    | Blip2RetrievalConfig,
    Field(discriminator="type"),
]
