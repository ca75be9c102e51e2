"""`segpipe preprocess`: prepare the arrays of one configuration."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from segpipe.core.progress import SILENT, Watch
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.workflows.arrays import prepare_arrays
from segpipe.workflows.checked import require_configuration
from segpipe.workflows.options import PreprocessOptions
from segpipe.workflows.page import Page, plain
from segpipe.workflows.planning import current_plan
from segpipe.workflows.project import Project


@dataclass(frozen=True)
class Preprocessed:
    """What `segpipe preprocess` made."""

    index: PreprocessedIndex
    folder: Path
    failed: dict[str, str]
    """Cases that were left out, with the reasons."""


def preprocess(options: PreprocessOptions, watch: Watch = SILENT) -> Preprocessed:
    """Prepare the dataset's usable cases for one configuration; what is prepared already is kept.

    The workspace's plan is used; where there is none, one is made by the recipe that suits the device.
    """
    project = Project.open(options, watch)
    require_configuration(options.configuration, project.workspace)
    with ExitStack() as opened:
        if options.cluster is not None:
            from segpipe.execution.processes import open_executor

            elsewhere = options.resolved()
            workers = opened.enter_context(open_executor(options.cluster, options.jobs or 1))
            project = Project(elsewhere.dataset, project.workspace.resolved(), watch, workers=workers)
        opened.enter_context(project.alone())
        current = current_plan(project)
        index = prepare_arrays(project, current, options.configuration or current.default_configuration())
    failed = project.measured.left_out | index.failed
    return Preprocessed(index, project.workspace.preprocessed(index.configuration), failed)


def preprocess_only(options: PreprocessOptions, watch: Watch = SILENT) -> PreprocessedIndex:
    """Prepare the dataset's usable cases for one configuration; what is prepared already is kept.

    The workspace's plan is used; where there is none, one is made by the recipe that suits the device.
    """
    return preprocess(options, watch).index


def page(done: Preprocessed, _: PreprocessOptions) -> Page:
    """Show how many cases were prepared."""
    text = f"{len(done.index.cases)} case(s) prepared in {done.folder}"
    return Page(plain(done.index) | {"failed": done.failed}, [text], done.failed, "Cases left out")
