"""Plan, train and run medical image segmentation from a folder of scans.

``import segpipe`` brings in nothing heavy; each function is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from segpipe.inference.predictor import Predictor
    from segpipe.workflows.check import check
    from segpipe.workflows.compare.command import compare
    from segpipe.workflows.convert import convert
    from segpipe.workflows.crossval.command import crossval, crossval_status
    from segpipe.workflows.demo import demo
    from segpipe.workflows.distill.command import distill
    from segpipe.workflows.evaluate import evaluate
    from segpipe.workflows.export import export_model
    from segpipe.workflows.import_ import import_model
    from segpipe.workflows.networks import list_networks
    from segpipe.workflows.plan import plan
    from segpipe.workflows.postprocess import apply_postprocessing, choose_postprocessing
    from segpipe.workflows.predict import predict
    from segpipe.workflows.preprocess import preprocess
    from segpipe.workflows.report import report
    from segpipe.workflows.run import run
    from segpipe.workflows.train import train

__all__ = [
    "Predictor",
    "apply_postprocessing",
    "check",
    "choose_postprocessing",
    "compare",
    "convert",
    "crossval",
    "crossval_status",
    "demo",
    "distill",
    "evaluate",
    "export_model",
    "import_model",
    "list_networks",
    "plan",
    "predict",
    "preprocess",
    "report",
    "run",
    "train",
]

_HOMES = {
    "Predictor": "inference.predictor",
    "apply_postprocessing": "workflows.postprocess",
    "check": "workflows.check",
    "choose_postprocessing": "workflows.postprocess",
    "compare": "workflows.compare.command",
    "convert": "workflows.convert",
    "crossval": "workflows.crossval.command",
    "crossval_status": "workflows.crossval.command",
    "demo": "workflows.demo",
    "distill": "workflows.distill.command",
    "evaluate": "workflows.evaluate",
    "export_model": "workflows.export",
    "import_model": "workflows.import_",
    "list_networks": "workflows.networks",
    "plan": "workflows.plan",
    "predict": "workflows.predict",
    "preprocess": "workflows.preprocess",
    "report": "workflows.report",
    "run": "workflows.run",
    "train": "workflows.train",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"segpipe.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'segpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
