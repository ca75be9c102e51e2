"""Plan, train and run medical image segmentation from a folder of scans.

``import segpipe`` brings in nothing heavy; each function is loaded when it is first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from segpipe.version import __version__ as __version__

if TYPE_CHECKING:
    from segpipe.commands import check, convert, demo, evaluate, list_networks, plan, predict, preprocess, report, train
    from segpipe.line import run

__all__ = [
    "check",
    "convert",
    "demo",
    "evaluate",
    "list_networks",
    "plan",
    "predict",
    "preprocess",
    "report",
    "run",
    "train",
]


def __getattr__(name: str) -> Any:
    if name in __all__:
        return getattr(import_module("segpipe.line" if name == "run" else "segpipe.commands"), name)
    raise AttributeError(f"module 'segpipe' has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
