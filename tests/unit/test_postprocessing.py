import numpy as np
import pytest

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.core.progress import Watch
from segpipe.errors import SegpipeError
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from segpipe.postprocessing.apply import apply_rules
from segpipe.postprocessing.run import apply_to_folder
from segpipe.postprocessing.schema import EVERYTHING, PostprocessingRules, Rule
from tests.helpers.inference import small_plan
from tests.phantoms import axis_grid

LABELS = Labels.plain({"liver": 3, "spleen": 7})
SHAPE = (12, 20, 24)
SPACING = (2.0, 1.0, 1.0)


def scene():
    """A liver with a hole and two false pieces, 54 and 8 voxels; a spleen of two pieces that touch at a corner only."""
    array = np.zeros(SHAPE, dtype=np.uint8)
    array[1:8, 2:10, 2:10] = 3
    array[4, 5, 5] = 0
    array[9:12, 0:3, 0:6] = 3
    array[10:12, 16:18, 20:22] = 3
    array[2:4, 12:14, 12:14] = 7
    array[4:6, 14:16, 14:16] = 7
    return array


@pytest.mark.parametrize(
    ("rule", "liver", "spleen"),
    [
        (Rule(label="liver", keep="largest"), 7 * 64 - 1, 16),
        (Rule(label="liver", min_mm3=20), 7 * 64 - 1 + 54, 16),
        (Rule(label="liver", min_mm3=108), 7 * 64 - 1 + 54, 16),
        (Rule(label="liver", min_mm3=109), 7 * 64 - 1, 16),
        (Rule(label="liver", fill_holes=True), 7 * 64 + 54 + 8, 16),
        (Rule(label="spleen", keep="largest"), 7 * 64 - 1 + 54 + 8, 16),
        (Rule(label=EVERYTHING, keep="largest"), 7 * 64 - 1, 0),
        (Rule(label=EVERYTHING, min_mm3=32, fill_holes=True), 7 * 64 + 54, 16),
    ],
)
def test_rules(rule, liver, spleen):
    before = scene()
    after = apply_rules(before, SPACING, LABELS, (rule,))
    assert ((after == 3).sum(), (after == 7).sum()) == (liver, spleen)
    np.testing.assert_array_equal(before, scene())
    assert after.dtype == before.dtype


def test_a_region_is_cleaned_with_all_its_labels_and_another_label_is_no_hole():
    regions = Labels(
        targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
        regions=True,
        n_entries=3,
    )
    array = np.zeros((6, 9, 9), dtype=np.uint8)
    array[0:5, 0:5, 0:5] = 1
    array[2, 2, 2] = 2
    array[5, 8, 8] = 2
    whole = apply_rules(array, SPACING, regions, (Rule(label="whole", keep="largest", fill_holes=True),))
    assert whole[5, 8, 8] == 0
    assert whole[2, 2, 2] == 2


def test_holes_of_a_picture_are_filled():
    picture = np.zeros((1, 9, 9), dtype=np.uint8)
    picture[0, 2:7, 2:7] = 3
    picture[0, 4, 4] = 0
    filled = apply_rules(picture, (1.0, 1.0, 1.0), LABELS, (Rule(label="liver", fill_holes=True),))
    assert (filled == 3).sum() == 25


def test_a_rule_for_a_label_that_there_is_not_is_refused():
    with pytest.raises(SegpipeError, match=r"'kidney'; there are liver, spleen"):
        apply_rules(scene(), SPACING, LABELS, (Rule(label="kidney", keep="largest"),))


@pytest.fixture
def folders(tmp_path):
    """Predictions of three cases with false pieces far from a liver, and true small pieces of a spleen."""
    grid = axis_grid(SHAPE)
    for number in range(3):
        truth = np.zeros(SHAPE, dtype=np.uint8)
        truth[1:8, 2:10, 2 + number : 10 + number] = 3
        truth[2:4, 12:14, 12:14] = 7
        truth[9:11, 16:18, 20:22] = 7
        predicted = truth.copy()
        predicted[9:12, 0:3, 0:6] = 3
        predicted[4, 5, 5 + number] = 0
        write_volume(tmp_path / "truth" / f"c{number}.nii.gz", truth, grid)
        write_volume(tmp_path / "found" / f"c{number}.nii.gz", predicted, grid)
    return tmp_path


def test_only_what_helps_and_makes_no_label_worse_is_chosen(folders):
    plan = small_plan().model_copy(update={"labels": LABELS})
    model = folders / "model.segpipe"
    ModelFile(plan.to_json(), "3d_fullres", "tiny", (), {}).write(model)
    digest = ModelFile.read(model).digest(())
    chosen, failed = segpipe.choose_postprocessing(
        folders / "found", folders / "truth", model=model, rules=folders / "rules.json", jobs=1
    )
    assert failed == {}
    named = {(r.label, r.keep, r.min_mm3 > 0, r.fill_holes) for r in chosen.rules}
    # The whole foreground's largest component would cost the spleen; its least size, or the liver's largest, costs nothing.
    assert not any(r.label == EVERYTHING and r.keep == "largest" for r in chosen.rules)
    assert not any(r.label == "spleen" for r in chosen.rules)
    assert any(fill for *_, fill in named)
    assert chosen.n_cases == 3
    assert any(t.after["spleen"] < t.before["spleen"] for t in chosen.trials if not t.chosen)
    assert PostprocessingRules.read(folders / "rules.json") == chosen
    held = ModelFile.read(model)
    assert PostprocessingRules.model_validate_json(held.postprocessing_json) == chosen
    assert held.digest(()) != digest
    done, failed = segpipe.apply_postprocessing(folders / "found", folders / "clean", model=model, jobs=1)
    assert failed == {}
    assert all(n > 0 for n in done.values())
    for file in (folders / "truth").iterdir():
        np.testing.assert_array_equal(read_volume(folders / "clean" / file.name).array, read_volume(file).array)


def test_good_predictions_need_no_rules(folders):
    chosen, _ = segpipe.choose_postprocessing(folders / "truth", folders / "truth", rules=folders / "r.json", jobs=1)
    assert chosen.rules == ()
    assert chosen.trials[0].before == {"label_3": 1.0, "label_7": 1.0}


def test_rules_without_a_model_go_by_the_numbers_of_labels(folders):
    PostprocessingRules(rules=(Rule(label="label_3", keep="largest"),)).write(folders / "rules.json")
    (folders / "found" / "broken.nii.gz").write_bytes(b"")
    done, failed = segpipe.apply_postprocessing(
        folders / "found", folders / "clean", rules=folders / "rules.json", jobs=1
    )
    assert len(done) == 3
    assert "0 bytes" in failed["broken.nii.gz"]
    with pytest.raises(SegpipeError, match="is there already"):
        segpipe.apply_postprocessing(folders / "found", folders / "truth", rules=folders / "rules.json", jobs=1)
    PostprocessingRules(rules=(Rule(label="tumour1", keep="largest"),)).write(folders / "named.json")
    with pytest.raises(SegpipeError, match="'tumour1'; give --model"):
        segpipe.apply_postprocessing(folders / "found", folders / "new", rules=folders / "named.json", jobs=1)
    with pytest.raises(SegpipeError, match="give --rules"):
        segpipe.apply_postprocessing(folders / "found", folders / "clean")
    with pytest.raises(SegpipeError, match="give --rules FILE to write"):
        segpipe.choose_postprocessing(folders / "found", folders / "truth")


def rare_false_alarms(folder):
    """Two cases with a liver; a spleen that no reference has is found in both, in one of them as a large piece."""
    for number, size in ((0, 2), (1, 4)):
        truth = np.zeros(SHAPE, dtype=np.uint8)
        truth[1:8, 2:10, 2:10] = 3
        predicted = truth.copy()
        predicted[1 : 1 + size, 14 : 14 + size, 16 : 16 + size] = 7
        write_volume(folder / "truth" / f"c{number}.nii.gz", truth, axis_grid(SHAPE))
        write_volume(folder / "found" / f"c{number}.nii.gz", predicted, axis_grid(SHAPE))


def test_a_label_in_no_reference_can_only_gain_by_being_removed(tmp_path):
    rare_false_alarms(tmp_path)
    chosen, _ = segpipe.choose_postprocessing(tmp_path / "found", tmp_path / "truth", rules=tmp_path / "r.json", jobs=1)
    after = {(t.rule.label, t.rule.keep, t.rule.min_mm3): t for t in chosen.trials if not t.rule.fill_holes}
    # 8 and 64 voxels of 3 mm3 (24 and 192 mm3): the first goes from 30 mm3 on, both from 300 mm3 on.
    means = [after["*", "all", size].after["label_7"] for size in (10.0, 30.0, 100.0, 300.0)]
    assert means == [0, 0.5, 0.5, 1]
    assert after["*", "all", 300.0].before == {"label_3": 1.0, "label_7": 0.0}
    best = next(t for t in chosen.trials if t.chosen)
    assert best.after == {"label_3": 1.0, "label_7": 1.0}
    # What is shown are means over the same labels and cases, before, after, and in later passes.
    assert all(t.before.keys() == t.after.keys() and None not in t.after.values() for t in chosen.trials)
    assert chosen.trials[-1].before == {"label_3": 1.0, "label_7": 1.0}


def test_what_was_given_and_is_not_used_is_listed(folders):
    (folders / "truth" / "c2.nii.gz").rename(folders / "truth" / "other.nii.gz")
    model = folders / "model.segpipe"
    ModelFile(small_plan().model_copy(update={"labels": LABELS}).to_json(), "3d_fullres", "tiny", (), {}).write(model)
    stray = read_volume(folders / "found" / "c1.nii.gz").array[0].copy()
    stray[0, 0, 0] = 9
    write_volume(folders / "found" / "c1.nii.gz", stray, axis_grid(SHAPE))
    said = Listening()
    chosen, failed = segpipe.choose_postprocessing(
        folders / "found", folders / "truth", model=model, jobs=1, watch=said
    )
    assert chosen.n_cases == 1
    # A dataset has more references than were predicted; but each prediction is of a case.
    assert said.notes == [
        f"references in {folders / 'truth'}: 3 given, 2 used, 1 passed over",
        f"  no prediction of this name in {folders / 'found'}: other",
        f"predictions in {folders / 'found'}: 3 given, 2 used, 1 passed over",
        f"  no reference of this name in {folders / 'truth'}: c2",
    ]
    assert {case: reason.split(";")[0].split(" in /")[0] for case, reason in failed.items()} == {
        "c1": "case 'c1': the prediction holds the value 9",
        "c2": "no reference of this name",
    }
    said = Listening()
    segpipe.apply_postprocessing(folders / "found", folders / "clean", model=model, jobs=1, watch=said)
    assert said.notes == [
        "values in segmentations: 10 given, 9 used, 1 passed over",
        "  value 9 belongs to no label of the model and stays as it is; its labels have [0, 3, 7]: c1.nii.gz",
    ]
    assert 9 in read_volume(folders / "clean" / "c1.nii.gz").array


def test_a_model_whose_painting_loses_regions_says_so(folders):
    """An imported one; a hole of a region is filled with the value that it is painted with."""
    regions = Labels(
        targets=(Target(name="core", values=(7,), paint=7), Target(name="whole", values=(3, 7), paint=3)),
        regions=True, n_entries=3,
    )  # fmt: skip
    model = folders / "model.segpipe"
    ModelFile(small_plan().model_copy(update={"labels": regions}).to_json(), "3d_fullres", "tiny", (), {}).write(model)
    said = Listening()
    segpipe.choose_postprocessing(folders / "found", folders / "truth", model=model, jobs=1, watch=said)
    assert said.notes[0] == (
        "the model paints its regions so that some are lost: voxels of value 7 (core, whole) are written as 3, lost from core"
    )


def test_a_hole_of_a_region_gets_the_value_of_this_region_alone():
    crossing = Labels(
        targets=(Target(name="a", values=(1, 2), paint=2), Target(name="b", values=(2, 3), paint=3)),
        regions=True, n_entries=3, by_set=True,
    )  # fmt: skip
    picture = np.zeros((1, 9, 9), dtype=np.uint8)
    picture[0, 2:7, 2:7] = 1
    picture[0, 4, 4] = 0
    filled = apply_rules(picture, (1.0, 1.0, 1.0), crossing, (Rule(label="a", fill_holes=True),))
    assert filled[0, 4, 4] == 1
    earlier = apply_rules(
        picture, (1.0, 1.0, 1.0), crossing.model_copy(update={"by_set": False}), (Rule(label="a", fill_holes=True),)
    )
    assert earlier[0, 4, 4] == 2


class Listening(Watch):
    """Keeps what is noted."""

    def __init__(self):
        self.notes = []

    def note(self, text):
        self.notes.append(text)


def test_a_link_to_nothing_is_a_failed_case(tmp_path):
    source = tmp_path / "in"
    write_volume(source / "a.nii.gz", scene(), axis_grid(SHAPE, SPACING))
    (source / "b.nii.gz").symlink_to(tmp_path / "gone.nii.gz")
    cleaned = apply_to_folder(source, tmp_path / "out", (Rule(label=EVERYTHING, keep="largest"),), None, workers=1)
    assert cleaned.changed.keys() == {"a.nii.gz"}
    assert "which is not there" in cleaned.failed["b.nii.gz"]
