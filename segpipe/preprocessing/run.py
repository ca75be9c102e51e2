"""The stage: every usable case to arrays, in parallel, resumable."""

from collections.abc import Callable
from functools import partial
from math import prod

from segpipe.core import seeds
from segpipe.core.artefact import json_digest
from segpipe.core.system_names import below
from segpipe.core.workspace import PreparedFiles, Workspace
from segpipe.dataset.check import Expectations
from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.dataset.schema import Case, Dataset
from segpipe.dataset.store import StoredCase, read_case
from segpipe.errors import CaseError
from segpipe.execution import processes
from segpipe.execution.memory import free_bytes
from segpipe.execution.processes import Workers
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.kept import is_prepared, write_prepared
from segpipe.preprocessing.room import prepare_where_it_fits, resampling_of
from segpipe.preprocessing.schema import PreprocessedIndex
from segpipe.version import CASES_AS_OF


def preprocess(
    dataset: Dataset,
    fingerprint: Fingerprint,
    plan: Plan,
    workspace: Workspace,
    *,
    configuration: str,
    workers: Workers = None,
    on_case: Callable[[str], None] | None = None,
) -> PreprocessedIndex:
    """Prepare the usable cases of the workspace's dataset for one configuration.

    A case that is already prepared from the same files by the same choices is not touched. A case that fails is named
    in the result with its reason, and the rest finish.

    Parameters
    ----------
    dataset : Dataset
    fingerprint : Fingerprint
        Measurements of the dataset; its cases are prepared.
    plan : Plan
    workspace : Workspace
        Where the arrays are kept.
    configuration : str
    workers : int or executor, optional
        Most worker processes, or whose.
    on_case : callable, optional
        Receives each case id when the case is done.
    """
    chosen = plan.configuration(configuration)
    usable = {c.case for c in fingerprint.cases}
    folder = workspace.preprocessed(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [c for c in dataset.cases if c.id in usable]
    expected = Expectations.of(dataset)
    work = partial(_prepare_case, expected=expected, plan=plan, configuration=chosen, workspace=workspace)
    peak = peak_bytes(fingerprint, plan, chosen)
    done, failed = [], {}
    for outcome in processes.map_cases(work, cases, workers=workers, bytes_each=peak):
        if outcome.failure:
            failed[outcome.item.id] = outcome.failure
        else:
            done.append(outcome.item.id)
        if on_case:
            on_case(outcome.item.id)
    index = PreprocessedIndex(
        configuration=configuration,
        plan_digest=plan.digest(),
        cases=tuple(sorted(done)),
        failed=dict(sorted(failed.items())),
    )
    index.write(workspace.prepared_index(configuration))
    return index


def peak_bytes(fingerprint: Fingerprint, plan: Plan, configuration: Configuration) -> int:
    """Forecast of the memory that the largest case needs: native and resampled copies of image and labels."""
    free, n_channels = free_bytes(), len(plan.channel_names)
    # Native: the stored image too (up to 4 bytes a voxel). A fifth above what was measured; docs/experiments.md.
    each = [
        4 * n_channels * prod(case.shape_after_crop)
        + resampling_of(case.shape_after_crop, case.spacing_mm, plan, configuration).needed_bytes
        for case in fingerprint.cases
    ]
    # A case that cannot fit is refused before its array is made: the others need not work one at a time for it.
    return max((n for n in each if n <= free), default=max(each, default=0))


def _prepare_case(
    case: Case, expected: Expectations, plan: Plan, configuration: Configuration, workspace: Workspace
) -> None:
    files = PreparedFiles(below(workspace.preprocessed(configuration.name), case.id))
    reading = read_case(case, expected, workspace.case(case.id))
    source = _source_digest(reading.record, plan, configuration)
    if is_prepared(files, source):
        return
    if not reading.record.usable:
        raise CaseError("; ".join(f"{f.rule}: {f.message}" for f in reading.record.findings if f.severity == "error"))
    arrays = reading.arrays()
    prepared = prepare_where_it_fits(arrays.image, arrays.labels, plan, configuration)
    del arrays, reading
    write_prepared(files, prepared, source, plan, configuration, seeds.stream(0, "foreground", case.id))


def _source_digest(record: StoredCase, plan: Plan, configuration: Configuration) -> str:
    return json_digest(
        {
            "software": CASES_AS_OF,
            "content": record.content_digest(),
            "orientation": plan.orientation,
            "transpose": plan.transpose_forward,
            "labels": plan.labels.model_dump(mode="json"),
            "intensities": [s.model_dump(mode="json") for s in plan.intensities]
            if "ct" in configuration.normalisation
            else [],
            "configuration": configuration.model_dump(
                mode="json", include={"spacing_mm", "patch_size", "normalisation", "use_mask_for_norm"}
            ),
        }
    )
