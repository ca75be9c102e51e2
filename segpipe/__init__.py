"""Plan, train and run medical image segmentation from a folder of scans.

``import segpipe`` brings in nothing heavy; each function is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from segpipe.commands import check, convert, demo, evaluate, list_networks, plan, preprocess, report, train
    from segpipe.comparing import compare
    from segpipe.crossvalidating import crossval, crossval_status
    from segpipe.distilling import distill
    from segpipe.inference.predictor import Predictor
    from segpipe.line import run
    from segpipe.models import apply_postprocessing, choose_postprocessing, export_model, import_model, predict

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

_ELSEWHERE = {
    "run": "segpipe.line",
    "distill": "segpipe.distilling",
    "compare": "segpipe.comparing",
    **dict.fromkeys(("crossval", "crossval_status"), "segpipe.crossvalidating"),
    "Predictor": "segpipe.inference.predictor",
    **dict.fromkeys(
        ("apply_postprocessing", "choose_postprocessing", "export_model", "import_model", "predict"), "segpipe.models"
    ),
}


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module(_ELSEWHERE.get(name, "segpipe.commands")), name)
    raise AttributeError(f"module 'segpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
