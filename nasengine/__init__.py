"""nasengine: differentiable neural architecture search.

Every verb of the command line is a function here: `run`, `search`, `train`, `propose`, `collect`, `rank`, `front`,
`compare`, `export`, `report`, `profile`, `show`, `list`. The names are loaded on use, so that importing stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from nasengine.algorithm import Algorithm as Algorithm
    from nasengine.algorithm import StepInfo as StepInfo
    from nasengine.architecture import Architecture as Architecture
    from nasengine.architecture import Choice as Choice
    from nasengine.attention import ElasticAttention as ElasticAttention
    from nasengine.collecting import collect as collect
    from nasengine.comparing import compare as compare
    from nasengine.elastic import ElasticDepth as ElasticDepth
    from nasengine.elastic import ElasticResolution as ElasticResolution
    from nasengine.elastic import Size as Size
    from nasengine.encoding import Graphs as Graphs
    from nasengine.errors import NasengineError as NasengineError
    from nasengine.exporting import export as export
    from nasengine.layers import ElasticBatchNorm1d as ElasticBatchNorm1d
    from nasengine.layers import ElasticBatchNorm2d as ElasticBatchNorm2d
    from nasengine.layers import ElasticConv1d as ElasticConv1d
    from nasengine.layers import ElasticConv2d as ElasticConv2d
    from nasengine.layers import ElasticDepthwiseConv2d as ElasticDepthwiseConv2d
    from nasengine.layers import ElasticEmbedding as ElasticEmbedding
    from nasengine.layers import ElasticLayerNorm as ElasticLayerNorm
    from nasengine.layers import ElasticLinear as ElasticLinear
    from nasengine.layers import ElasticParameter as ElasticParameter
    from nasengine.listing import list as list
    from nasengine.listing import show as show
    from nasengine.loop import Observer as Observer
    from nasengine.measure import Measure as Measure
    from nasengine.pareto import front as front
    from nasengine.pipeline import run as run
    from nasengine.predictor import PREDICTORS as PREDICTORS
    from nasengine.predictor import Predictor as Predictor
    from nasengine.predictor import load_predictor as load_predictor
    from nasengine.profiling import profile as profile
    from nasengine.proposing import propose as propose
    from nasengine.ranking import rank as rank
    from nasengine.registry import ALGORITHMS as ALGORITHMS
    from nasengine.registry import SPACES as SPACES
    from nasengine.reporting import report as report
    from nasengine.searching import search as search
    from nasengine.space import Space as Space
    from nasengine.supernet import MixedOp as MixedOp
    from nasengine.supernet import Shared as Shared
    from nasengine.supernet import Supernet as Supernet
    from nasengine.supernet import Zero as Zero
    from nasengine.task import Augment as Augment
    from nasengine.task import Dataset as Dataset
    from nasengine.task import DataSettings as DataSettings
    from nasengine.task import Shapes as Shapes
    from nasengine.task import Task as Task
    from nasengine.task import load_task as load_task
    from nasengine.trained import load_network as load_network
    from nasengine.training import train as train

__version__ = "0.1.0"

_HOME = {
    "ALGORITHMS": "registry",
    "Algorithm": "algorithm",
    "Architecture": "architecture",
    "Augment": "task",
    "Choice": "architecture",
    "DataSettings": "task",
    "Dataset": "task",
    "ElasticAttention": "attention",
    "ElasticBatchNorm1d": "layers",
    "ElasticBatchNorm2d": "layers",
    "ElasticConv1d": "layers",
    "ElasticConv2d": "layers",
    "ElasticDepth": "elastic",
    "ElasticDepthwiseConv2d": "layers",
    "ElasticEmbedding": "layers",
    "ElasticLayerNorm": "layers",
    "ElasticLinear": "layers",
    "ElasticParameter": "layers",
    "ElasticResolution": "elastic",
    "Graphs": "encoding",
    "Measure": "measure",
    "MixedOp": "supernet",
    "NasengineError": "errors",
    "Observer": "loop",
    "PREDICTORS": "predictor",
    "Predictor": "predictor",
    "SPACES": "registry",
    "Shapes": "task",
    "Shared": "supernet",
    "Size": "elastic",
    "Space": "space",
    "StepInfo": "algorithm",
    "Supernet": "supernet",
    "Task": "task",
    "Zero": "supernet",
    "collect": "collecting",
    "export": "exporting",
    "front": "pareto",
    "compare": "comparing",
    "list": "listing",
    "load_network": "trained",
    "load_predictor": "predictor",
    "load_task": "task",
    "propose": "proposing",
    "profile": "profiling",
    "rank": "ranking",
    "run": "pipeline",
    "report": "reporting",
    "search": "searching",
    "show": "listing",
    "train": "training",
}

__all__ = sorted(_HOME)


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'nasengine' has no attribute {name!r}")
    return getattr(importlib.import_module(f"nasengine.{_HOME[name]}"), name)


def __dir__() -> Any:
    return sorted([*globals(), *_HOME])
