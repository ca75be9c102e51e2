"""Plan, train and run medical image segmentation from a folder of scans.

``import segpipe`` brings in nothing heavy; each name is loaded when it is first used.
"""

from importlib import import_module
from typing import Any

from segpipe.version import __version__ as __version__

_FUNCTIONS = {
    "apply_postprocessing": ("workflows.postprocess", "apply_postprocessing", "PostprocessOptions"),
    "check": ("workflows.check", "check", "CheckOptions"),
    "choose_postprocessing": ("workflows.postprocess", "choose_postprocessing", "PostprocessOptions"),
    "compare": ("workflows.compare.command", "compare", "CompareOptions"),
    "convert": ("workflows.convert", "convert", "ConvertOptions"),
    "crossval": ("workflows.crossval.command", "crossval", "CrossvalOptions"),
    "demo": ("workflows.demo", "demo", "DemoOptions"),
    "distill": ("workflows.distill.command", "distill", "DistillOptions"),
    "evaluate": ("workflows.evaluate", "evaluate", "EvaluateOptions"),
    "export_model": ("workflows.export", "export", "ExportOptions"),
    "import_model": ("workflows.import_", "import_", "ImportOptions"),
    "list_networks": ("workflows.networks", "networks", "NetworksOptions"),
    "plan": ("workflows.plan", "plan_only", "PlanOptions"),
    "predict": ("workflows.predict", "predict", "PredictOptions"),
    "preprocess": ("workflows.preprocess", "preprocess_only", "PreprocessOptions"),
    "report": ("workflows.report", "report", "ReportOptions"),
    "run": ("workflows.run", "run", "RunOptions"),
    "train": ("workflows.train", "train", "TrainOptions"),
}
"""Functions whose keywords are a record's fields: module, workflow, record."""

_HOMES = {
    "CheckResult": "dataset.run",
    "Comparison": "evaluation.comparison",
    "Crossvalidated": "workflows.crossval.command",
    "Distilled": "workflows.distill.command",
    "Evaluation": "evaluation.schema",
    "Fingerprint": "dataset.fingerprint.schema",
    "Plan": "planning.schema",
    "PredictionRow": "inference.schema",
    "Predictor": "inference.predictor",
    "PredictorOptions": "inference.predictor",
    "RunResult": "workflows.run",
    "Runtime": "execution.device",
    "SegpipeError": "errors",
    "Trained": "workflows.train",
    "Watch": "core.progress",
    "choose_runtime": "execution.device",
    "crossval_status": "workflows.crossval.command",
}
"""What is taken as it is from its module: types to steer with, and results."""

__all__ = sorted((*_FUNCTIONS, *_HOMES))


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"segpipe.{_HOMES[name]}"), name)
    if name not in _FUNCTIONS:
        raise AttributeError(f"module 'segpipe' has no attribute {name!r}")
    module, workflow, record = _FUNCTIONS[name]
    options = import_module("segpipe.workflows.options")
    keywords = import_module("segpipe.workflows.keywords")
    made = keywords.with_keywords(
        getattr(import_module(f"segpipe.{module}"), workflow), getattr(options, record), *_PLACED.get(name, ())
    )
    made.__name__ = made.__qualname__ = name
    globals()[name] = made
    return made


_PLACED = {
    "choose_postprocessing": (("predictions", "references"), ("output",)),
    "apply_postprocessing": (("predictions", "output"), ("references",)),
}
"""Fields that are given by their place, where they are not the record's arguments, and fields that a function does not have."""


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
