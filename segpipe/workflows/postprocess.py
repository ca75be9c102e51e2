"""`segpipe postprocess`: choose rules that clean segmentations, or apply them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.progress import SILENT, Watch
from segpipe.core.workspace import PathLike
from segpipe.errors import ModelError, SegpipeError

if TYPE_CHECKING:
    from segpipe.core.labels import Labels
    from segpipe.postprocessing.schema import PostprocessingRules


def choose_postprocessing(
    predictions: PathLike,
    references: PathLike,
    *,
    rules: PathLike | None = None,
    model: PathLike | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> tuple[PostprocessingRules, dict[str, str]]:
    """Choose rules on predictions of cases that the model did not see; returns them, and the cases that failed with the reasons.

    Parameters
    ----------
    predictions, references : path
        Folders with files of the same names.
    rules : path, optional
        JSON file to write them to.
    model : path, optional
        Model to store them in; its labels are meant. Without one, every value but 0 is a label.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.evaluation.run import labels_found, match_pairs
    from segpipe.models.file import model_in, read_model
    from segpipe.postprocessing.choose import choose_rules

    if rules is None and model is None:
        raise SegpipeError("give --rules FILE to write the chosen rules to, or --model to store them in")
    pairs, missing = match_pairs(Path(predictions), Path(references))
    labels = labels_found(pairs, jobs) if model is None else _labels_of(Path(model))
    with watch.counting("choosing post-processing", None) as step:
        chosen, failed = choose_rules(pairs, labels, chosen_on=str(predictions), jobs_limit=jobs, on_pass=step)
    if missing:
        watch.note(f"{len(missing)} reference(s) have no prediction of their name and are not used")
    if rules is not None:
        chosen.write(Path(rules))
    if model is not None:
        replace(read_model(Path(model)), postprocessing_json=chosen.to_json()).write(model_in(Path(model)))
    return chosen, failed


def apply_postprocessing(
    predictions: PathLike,
    output: PathLike,
    *,
    rules: PathLike | None = None,
    model: PathLike | None = None,
    jobs: int | None = None,
    watch: Watch = SILENT,
) -> tuple[dict[str, int], dict[str, str]]:
    """Apply rules to every segmentation of a folder; returns the changed voxels of each, and those that failed with the reasons.

    Parameters
    ----------
    predictions : path
        Folder of segmentations, of any program.
    output : path
        Another folder.
    rules : path, optional
        JSON file; the model's own rules unless given.
    model : path, optional
        Whose labels are meant. Without one, every value that is found is a label, named by its number as ``label_3``.
    jobs : int, optional
        Most worker processes.
    watch : Watch
        Told of progress.
    """
    from segpipe.models.file import read_model
    from segpipe.postprocessing.run import apply_to_folder
    from segpipe.postprocessing.schema import PostprocessingRules

    if rules is not None:
        chosen = PostprocessingRules.read(Path(rules)).rules
    elif model is not None:
        held = read_model(Path(model))
        if not held.postprocessing_json:
            raise ModelError(f"{model}: holds no post-processing; choose some with --references first, or give --rules")
        chosen = held.rules(Path(model))
    else:
        raise SegpipeError("give --rules FILE, or --model with a model that holds rules")
    labels = None if model is None else _labels_of(Path(model))
    with watch.counting("post-processing", None) as step:
        return apply_to_folder(Path(predictions), Path(output), chosen, labels, jobs_limit=jobs, on_case=step)


def _labels_of(model: Path) -> Labels:
    from segpipe.models.file import read_model

    return read_model(model).plan.labels
