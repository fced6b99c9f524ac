"""Readers of the official annotation files of public data sets, as they are published. Nothing is downloaded."""

from blip.datasets.official.files import Official
from blip.datasets.official.karpathy import COCO, Flickr30k
from blip.datasets.official.nlvr2 import NLVR2
from blip.datasets.official.nocaps import NoCaps
from blip.datasets.official.video import MSRVTT, MSRVTTQA, MSVDQA
from blip.datasets.official.visdial import VisDial
from blip.datasets.official.vqa import AOKVQA, OKVQA, VQAv2

__all__ = [
    "AOKVQA",
    "COCO",
    "MSRVTT",
    "MSRVTTQA",
    "MSVDQA",
    "NLVR2",
    "OKVQA",
    "Flickr30k",
    "NoCaps",
    "Official",
    "VQAv2",
    "VisDial",
]
