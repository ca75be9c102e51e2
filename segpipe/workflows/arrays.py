"""Arrays of a configuration, prepared for training. No torch."""

from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import ArtefactError
from segpipe.planning.schema import Plan
from segpipe.preprocessing.room import resampling_of
from segpipe.preprocessing.run import preprocess
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.workflows.project import Project


def remarks(measured: Fingerprint, plan: Plan, configuration: str) -> dict[str, str]:
    """Return a sentence for each case that becomes far larger than it is, which takes long: said before it begins."""
    chosen = plan.configuration(configuration)
    found = {c.case: resampling_of(c.shape_after_crop, c.spacing_mm, plan, chosen).remark() for c in measured.cases}
    return {case: remark for case, remark in found.items() if remark is not None}


def prepare_arrays(project: Project, plan: Plan, configuration: str) -> PreprocessedIndex:
    """Prepare the arrays of a configuration; a case that fails is noted, and that all fail is an error."""
    arrays, watch = plan.arrays_of(configuration), project.watch
    for case, remark in remarks(project.measured, plan, arrays).items():
        watch.note(f"{case}: {remark}")
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
