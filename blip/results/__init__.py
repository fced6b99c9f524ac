"""Results of the verbs, one frozen class per verb.

The JSON of a result is its step's `metrics.json`; the report, the step pages, MLflow and KFP read the classes. They
stand together, beside no verb, since the report reads them and must not import the verbs.
"""

from blip.results.capfilt import (
    SOURCES,
    CapFiltResult,
    Change,
    Kept,
    KeptBySource,
    LabelResult,
    MatchHistogram,
    Noise,
    SelectResult,
    Source,
    Speed,
)
from blip.results.data import DryRunResult, FeaturesResult, IngestResult, SplitResult, WriteTarsResult
from blip.results.evaluation import SMALLER_IS_BETTER, DownstreamResult, EvaluationResult, GateResult, gain
from blip.results.result import Result, numbers
from blip.results.training import Alarm, FrozenResult, Point, TrainResult
from blip.results.weights import FetchResult, FetchWeightsResult, MirroredModel

__all__ = [
    "SMALLER_IS_BETTER",
    "SOURCES",
    "Alarm",
    "CapFiltResult",
    "Change",
    "DownstreamResult",
    "DryRunResult",
    "EvaluationResult",
    "FeaturesResult",
    "FetchResult",
    "FetchWeightsResult",
    "FrozenResult",
    "GateResult",
    "IngestResult",
    "Kept",
    "KeptBySource",
    "LabelResult",
    "MatchHistogram",
    "MirroredModel",
    "Noise",
    "Point",
    "Result",
    "SelectResult",
    "Source",
    "Speed",
    "SplitResult",
    "TrainResult",
    "WriteTarsResult",
    "gain",
    "numbers",
]
