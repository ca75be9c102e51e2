"""`segpipe doctor`: what this machine can do."""

from __future__ import annotations

from importlib.metadata import version
from pathlib import Path

import psutil

from segpipe.core.progress import SILENT, Watch
from segpipe.core.text import Table
from segpipe.core.workspace import Workspace
from segpipe.execution.device import choose_runtime, cpu_flags
from segpipe.inference.engines.choose import default_engine
from segpipe.workflows.options import DoctorOptions
from segpipe.workflows.page import Page
from segpipe.workflows.planning import recipe_for
from segpipe.workflows.project import Project

_FAST = {"avx2", "avx512f", "avx512_bf16", "avx512_fp16", "avx512_vnni", "amx_bf16", "amx_fp16", "amx_int8"}


def doctor(options: DoctorOptions, watch: Watch = SILENT) -> dict[str, str]:
    """Return what this machine can do: device, precision, memory, versions."""
    runtime, memory = choose_runtime(), psutil.virtual_memory()
    return {
        "trains on": runtime.describe(),
        "predicts with": default_engine(runtime),
        "recipe unless asked for": recipe_for(Project(Path(), Workspace(Path()))),
        "processor features": ", ".join(sorted(cpu_flags() & _FAST)) or "none known",
        "memory free": f"{memory.available / 2**30:.1f} of {memory.total / 2**30:.1f} GiB",
        **{name: version(name) for name in ("segpipe", "torch", "numpy", "nibabel", "SimpleITK")},
    }


def page(facts: dict[str, str], _: DoctorOptions) -> Page:
    """Show the facts."""
    return Page(facts, [Table("This machine", ["", ""], [[name, value] for name, value in facts.items()])])
