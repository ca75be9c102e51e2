"""The stage: every usable case to arrays, in parallel, resumable."""

from collections.abc import Callable
from functools import partial
from math import prod
from pathlib import Path

from segpipe import jobs, seeds
from segpipe.artefact import json_digest
from segpipe.dataset.check import check_case
from segpipe.dataset.schema import Case, Dataset
from segpipe.errors import CaseError
from segpipe.fingerprint.schema import Fingerprint
from segpipe.geometry import resampled_shape
from segpipe.io.arrays import write_array
from segpipe.planning.schema import Configuration, Plan
from segpipe.preprocessing.foreground import class_voxels, foreground_index
from segpipe.preprocessing.prepare import prepare, target_spacing
from segpipe.preprocessing.schema import PreparedRecord, PreprocessedIndex
from segpipe.version import __version__
from segpipe.workspace import PreparedFiles, Workspace


def preprocess(
    workspace: Workspace,
    plan: Plan,
    *,
    configuration: str,
    jobs_limit: int | None = None,
    on_case: Callable[[str], None] | None = None,
) -> PreprocessedIndex:
    """Prepare the usable cases of the workspace's dataset for one configuration.

    A case that is already prepared from the same files by the same choices is not touched. A case that fails is named
    in the result with its reason, and the rest finish.

    Parameters
    ----------
    workspace : Workspace
        Holds dataset.json and fingerprint.json.
    plan : Plan
    configuration : str
    jobs_limit : int, optional
        Most worker processes.
    on_case : callable, optional
        Told each case id when it is done.
    """
    dataset, fingerprint = Dataset.read(workspace.dataset), Fingerprint.read(workspace.fingerprint)
    chosen = plan.configuration(configuration)
    usable = {c.case for c in fingerprint.cases}
    folder = workspace.preprocessed(configuration)
    folder.mkdir(parents=True, exist_ok=True)
    cases = [c for c in dataset.cases if c.id in usable]
    work = partial(_prepare_case, channel_names=dataset.channel_names, plan=plan, configuration=chosen, folder=folder)
    peak = peak_bytes(fingerprint, plan, chosen)
    done, failed = [], {}
    for outcome in jobs.map_cases(work, cases, limit=jobs_limit, bytes_each=peak):
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
    n_channels, largest = len(plan.channel_names), 0
    for case in fingerprint.cases:
        spacing = tuple(case.spacing_mm[a] for a in plan.transpose_forward)
        cropped = tuple(case.shape_after_crop[a] for a in plan.transpose_forward)
        resampled = prod(resampled_shape(cropped, spacing, target_spacing(configuration, spacing)))
        # Native: file (up to 8 bytes a voxel), its copy, float32, mask, labels. Resampled: image, one axis-wise copy, three label arrays.
        largest = max(largest, prod(case.shape) * (20 * n_channels + 12) + resampled * (4 * n_channels + 24))
    return largest


def _prepare_case(
    case: Case, channel_names: tuple[str, ...], plan: Plan, configuration: Configuration, folder: Path
) -> None:
    files = PreparedFiles(folder / case.id)
    source = _source_digest(case, plan, configuration)
    whole = all(f.is_file() for f in (files.record, files.image, files.segmentation, files.foreground))
    if whole and PreparedRecord.read(files.record).source_digest == source:
        return
    files.record.unlink(missing_ok=True)
    files.root.mkdir(exist_ok=True)
    checked = check_case(case, channel_names, plan.labels)
    if checked.image is None or checked.labels is None:
        raise CaseError("; ".join(f"{f.rule}: {f.message}" for f in checked.errors))
    prepared = prepare(checked.image, checked.labels, plan, configuration)
    assert prepared.segmentation is not None
    n_classes = len(plan.label_values)
    patch = (1,) * (3 - configuration.dims) + configuration.patch_size
    write_array(files.image, prepared.image, patch)
    write_array(files.segmentation, prepared.segmentation, patch)
    write_array(
        files.foreground, foreground_index(prepared.segmentation, n_classes, seeds.stream(0, "foreground", case.id))
    )
    z, y, x = prepared.segmentation.shape
    PreparedRecord(
        case=case.id, source_digest=source, shape=(z, y, x), class_voxels=class_voxels(prepared.segmentation, n_classes)
    ).write(files.record)


def _source_digest(case: Case, plan: Plan, configuration: Configuration) -> str:
    return json_digest(
        {
            "software": __version__,
            "case": case.model_dump(mode="json"),
            "orientation": plan.orientation,
            "transpose": plan.transpose_forward,
            "labels": plan.label_values,
            "intensities": [s.model_dump(mode="json") for s in plan.intensities]
            if "ct" in configuration.normalisation
            else [],
            "configuration": configuration.model_dump(
                mode="json", include={"spacing_mm", "patch_size", "normalisation", "use_mask_for_norm"}
            ),
        }
    )
