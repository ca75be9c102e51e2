"""Arrays of a configuration, prepared for training. No torch."""

from segpipe.errors import ArtefactError
from segpipe.planning.schema import Plan
from segpipe.preprocessing.run import preprocess
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.workflows.project import Project


def prepare_arrays(project: Project, plan: Plan, configuration: str) -> PreprocessedIndex:
    """Prepare the arrays of a configuration; a case that fails is noted, and that all fail is an error."""
    arrays, watch = plan.arrays_of(configuration), project.watch
    with watch.counting(f"preprocessing for {arrays}", len(project.measured.cases)) as done:
        index = preprocess(
            project.matched, project.measured, plan, project.workspace,
            configuration=arrays, workers=project.workers, on_case=done,
        )  # fmt: skip
    for case, reason in index.failed.items():
        watch.note(f"preprocessing: {case}: {reason}")
    if not index.cases:
        where = project.workspace.preprocessed(arrays)
        raise ArtefactError(f"{where}: no case could be prepared; the reasons are above")
    return index
