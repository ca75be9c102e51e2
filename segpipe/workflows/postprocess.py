"""`segpipe postprocess`: choose rules that clean segmentations, or apply them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from segpipe.core.given import Given, PassedOver
from segpipe.core.labels import Labels
from segpipe.core.painting import painting_problems
from segpipe.core.progress import SILENT, Watch
from segpipe.core.system_names import real_path
from segpipe.core.text import Table, shown
from segpipe.core.writable import require_writable, require_writable_file
from segpipe.dataset.entries import entries_of
from segpipe.errors import ModelError, SegpipeError, UsageError
from segpipe.evaluation.run import labels_found, match_pairs
from segpipe.postprocessing.choose import choose_rules
from segpipe.postprocessing.run import apply_to_folder
from segpipe.postprocessing.schema import PostprocessingRules
from segpipe.workflows.checked import require_models
from segpipe.workflows.options import PostprocessOptions
from segpipe.workflows.page import Page, plain

if TYPE_CHECKING:
    from segpipe.models.file import ModelFile


@dataclass(frozen=True)
class Postprocessed:
    """What `segpipe postprocess` chose or changed."""

    chosen: PostprocessingRules | None = None
    """Rules, where they were chosen."""
    changed: dict[str, int] = field(default_factory=dict)
    """Changed voxels of each segmentation, where rules were applied."""
    failed: dict[str, str] = field(default_factory=dict)


def postprocess(options: PostprocessOptions, watch: Watch = SILENT) -> Postprocessed:
    """Choose rules that clean segmentations, on cases with a reference, or apply rules to any folder."""
    _require_places(options)
    if options.references is not None:
        chosen, failed = choose_postprocessing(options, watch)
        return Postprocessed(chosen, failed=failed)
    changed, failed = apply_postprocessing(options, watch)
    return Postprocessed(changed=changed, failed=failed)


def _require_places(options: PostprocessOptions) -> None:
    """Raise where what is asked for could not be read or written, before the work begins."""
    if options.model is not None:
        require_models([options.model], "--model")
    if options.references is None:
        if options.output is not None:
            require_writable(options.output, "OUTPUT")
        return
    if options.rules is not None:
        require_writable_file(options.rules, "--rules", PostprocessingRules.lies)
    if options.model is not None:
        require_writable(options.model if options.model.is_dir() else options.model.parent, "--model")


def choose_postprocessing(
    options: PostprocessOptions, watch: Watch = SILENT
) -> tuple[PostprocessingRules, dict[str, str]]:
    """Choose rules on predictions of cases that the model did not see; returns them, and the cases that failed with the reasons."""
    if options.references is None:
        raise SegpipeError("rules are chosen on cases with a reference; give their folder with --references")
    if options.rules is None and options.model is None:
        raise SegpipeError("give --rules FILE to write the chosen rules to, or --model to store them in")
    matched = match_pairs(options.predictions, options.references)
    pairs = matched.pairs
    labels = labels_found(pairs, options.jobs) if options.model is None else _labels_of(options.model)
    _say(watch, _painting(labels))
    with watch.counting("choosing post-processing", None) as step:
        chosen, failed = choose_rules(
            pairs, labels, chosen_on=real_path(options.predictions).name, workers=options.jobs, on_pass=step
        )
    # The references of a dataset are more than those of the cases that were predicted.
    alone = tuple(PassedOver(what=case, why=why) for case, why in matched.missing.items())
    n_references = len(pairs) + len(matched.twice) + len(alone)
    _say(watch, Given(kind=f"references in {options.references}", n_given=n_references, passed_over=alone).lines())
    for given in matched.given:
        _say(watch, given.lines())
    failed |= matched.twice | {p.what: p.why for given in matched.given for p in given.passed_over if p.a_case}
    if options.rules is not None:
        chosen.write(options.rules)
    if options.model is not None:
        from segpipe.models.file import model_in

        replace(_held(options.model), postprocessing_json=chosen.to_json()).write(model_in(options.model))
    return chosen, failed


def apply_postprocessing(options: PostprocessOptions, watch: Watch = SILENT) -> tuple[dict[str, int], dict[str, str]]:
    """Apply rules to every segmentation of a folder; returns the changed voxels of each, and those that failed with the reasons."""
    if options.output is None:
        raise UsageError("give OUTPUT to apply rules, or --references to choose them")
    if options.rules is not None:
        rules = PostprocessingRules.read(options.rules).rules
    elif options.model is not None:
        held = _held(options.model)
        if not held.postprocessing_json:
            raise ModelError(
                f"{options.model}: holds no post-processing; choose some with --references first, or give --rules"
            )
        rules = held.rules(options.model)
    else:
        raise SegpipeError("give --rules FILE, or --model with a model that holds rules")
    labels = None if options.model is None else _labels_of(options.model)
    if labels is not None:
        _say(watch, _painting(labels))
    if options.predictions.is_dir():
        _say(watch, entries_of(options.predictions).given.lines())
    with watch.counting("post-processing", None) as step:
        cleaned = apply_to_folder(
            options.predictions, options.output, rules, labels, workers=options.jobs, on_case=step
        )
    _say(watch, cleaned.values.lines())
    return cleaned.changed, cleaned.failed


def _painting(labels: Labels) -> list[str]:
    """What is lost where a model's masks are painted in order."""
    if not labels.regions or labels.by_set:
        return []
    return [f"the model paints its regions so that some are lost: {p}" for p in painting_problems(labels.targets)]


def _say(watch: Watch, lines: Sequence[str]) -> None:
    for line in lines:
        watch.note(line)


def _held(model: Path) -> ModelFile:
    """Read a model; torch is needed for that, and not for rules of a file."""
    from segpipe.models.file import read_model

    return read_model(model)


def _labels_of(model: Path) -> Labels:
    return _held(model).plan.labels


def page(done: Postprocessed, options: PostprocessOptions) -> Page:
    """Show rules that were chosen, or how much was changed."""
    chosen, changed, lost = done.chosen, done.changed, "Cases that failed"
    if chosen is None:
        n = sum(voxels > 0 for voxels in changed.values())
        text = f"{len(changed)} segmentation(s) written to {options.output}, {n} of them changed"
        return Page({"changed_voxels": changed, "failed": done.failed}, [text], done.failed, lost)
    rows = [
        [t.rule.describe(), _mean(t.before), _mean(t.after), "yes" if t.chosen else ""]
        for t in chosen.trials
        if t.before != t.after
    ]
    columns = ["rule", "mean Dice before", "after", "chosen"]
    tried = [Table("Rules that change a Dice", columns, rows, (1, 2))] if rows else []
    words = "; ".join(r.describe() for r in chosen.rules) or "none: no rule helps without making a label worse"
    return Page({"chosen": plain(chosen), "failed": done.failed}, [*tried, f"rules: {words}"], done.failed, lost)


def _mean(means: dict[str, float | None]) -> str:
    known = [m for m in means.values() if m is not None]
    return shown(sum(known) / len(known) if known else None, 4)
