"""Model files of several members; and probabilities held against a reference while a case is predicted."""

from dataclasses import replace

import numpy as np
import pytest
import torch

import segpipe
from segpipe.crossvalidation.pool import _calibration
from segpipe.dataset.load import load_image
from segpipe.distillation.teacher import Teacher
from segpipe.errors import CaseError, ModelError
from segpipe.evaluation.reliability import MARGIN_MM, CaseReliability, Reliability
from segpipe.inference.inputs import find_inputs
from segpipe.inference.run import predict
from segpipe.io.formats import read_volume, write_volume
from segpipe.models.file import ModelFile
from segpipe.training.initial import InitialWeights
from tests.helpers.ensembles import SHAPE
from tests.helpers.inference import small_plan, threshold_predictor
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid
from tests.strategies import ORIENTATIONS


def test_members_come_back_and_count_in_the_digest(pair):
    both = ModelFile.read(pair / "both.segpipe")
    assert [m.configuration for m in both.members] == ["3d_fullres", "2d"]
    assert both.members[0].others == ()
    assert list(both.others[0].folds) == ["1", "2"]
    both.write(pair / "again.segpipe")
    assert (pair / "again.segpipe").read_bytes() == (pair / "both.segpipe").read_bytes()
    other = replace(both, others=(model_of(small_plan(), "2d", folds=("1",)),))
    assert other.digest(()) != both.digest(())


def test_what_takes_a_single_model_says_so(pair):
    both = pair / "both.segpipe"
    for use in (
        lambda: segpipe.export_model(both, pair / "out"),
        lambda: InitialWeights.of(both),
        lambda: Teacher.load(both, fold=0),
    ):
        with pytest.raises(ModelError, match="is an ensemble of 3d_fullres, 2d"):
            use()


# Reliability ---------------------------------------------------------------------------------------------------------------------


def scan(folder, orientation=ORIENTATIONS[0]):
    """An image that says what it is: 1 and 2 where the labels are, and its reference, a little smaller."""
    grid = axis_grid(SHAPE)
    drawn = np.zeros(SHAPE, dtype=np.float32)
    drawn[4:10, 4:12, 4:12] = 1
    reference = np.zeros(SHAPE, dtype=np.uint16)
    values = small_plan().labels.values
    reference[4:10, 4:12, 4:10] = values[1]
    write_volume(folder / "in" / "a.nii.gz", orientation.apply(drawn), grid.reoriented(orientation))
    write_volume(folder / "ref" / "a.nii.gz", orientation.apply(reference), grid.reoriented(orientation))
    return drawn, reference


@pytest.mark.parametrize("number", [0, 17, 41])
def test_probabilities_are_counted_where_the_reference_lies(tmp_path, number):
    """Against the whole volume's probabilities, saved by prediction itself; whatever the axes of the file."""
    drawn, reference = scan(tmp_path, ORIENTATIONS[number])
    predictor = threshold_predictor(small_plan())
    counting = Reliability(predictor.plan, {"a": tmp_path / "ref" / "a.nii.gz"}, tmp_path / "counts")
    shown = []

    def onlooker(case, image):
        sink = counting.sink_of(case, image)

        def both(placement, number, probabilities):
            shown.append(probabilities.numpy().copy())
            sink(placement, number, probabilities)

        return both

    rows = predict(
        find_inputs(tmp_path / "in", tmp_path / "out", 1), predictor, tmp_path / "out" / "p.jsonl", onlooker=onlooker
    )
    assert rows[0].status == "done"
    found = CaseReliability.read(tmp_path / "counts" / "a.json")
    probabilities = np.stack(shown, axis=1)
    # The crop is the box of what is not zero; around the reference's box lie 10 mm of it.
    box = tuple(slice(4, n) for n in (10, 12, 12))
    inside = probabilities[:, : drawn[box].shape[0]]
    there = reference[box] > 0
    name = predictor.plan.labels.names[0]
    counts = found.counts(name)
    assert counts.n.sum() == there.size
    assert counts.present.sum() == there.sum()
    assert counts.probability.sum() == pytest.approx(float(inside[1].sum()), rel=1e-4)
    assert MARGIN_MM / 1.0 > 2, "the margin covers the crop"


def counted(folder, image, reference):
    """Bins of the first label, of an image that says what is found: 1 where the label is, 0.4 elsewhere; None without a file."""
    grid = axis_grid(image.shape)
    write_volume(folder / "in" / "a.nii.gz", image, grid)
    write_volume(folder / "ref" / "a.nii.gz", reference, grid)
    predictor = threshold_predictor(small_plan())
    counting = Reliability(predictor.plan, {"a": folder / "ref" / "a.nii.gz"}, folder / "counts")
    inputs = find_inputs(folder / "in", folder / "out", 1)
    rows = predict(inputs, predictor, folder / "out" / "p.jsonl", onlooker=counting.sink_of)
    assert rows[0].status == "done"
    kept = [file.name for file in (folder / "counts").iterdir()]
    assert kept in ([], ["a.json"]), "the planes are taken away"
    return CaseReliability.read(folder / "counts" / "a.json").counts(predictor.plan.labels.names[0]) if kept else None


def far_apart():
    image = np.full((16, 20, 60), 0.4, dtype=np.float32)
    reference = np.zeros(image.shape, dtype=np.uint16)
    reference[4:8, 4:8, 4:8] = small_plan().labels.values[1]
    return image, reference


def test_far_from_the_structure_nothing_is_counted(tmp_path):
    counts = counted(tmp_path, *far_apart())
    # 2, 1.5 and 1 mm: 5, 7 and 10 voxels on each side, as far as the image goes.
    assert counts.n.sum() == (8 + 5) * (8 + 7) * (8 + 10)
    assert counts.present.sum() == 64


def test_a_false_alarm_far_from_the_structure_is_counted_with_what_is_around_it(tmp_path):
    image, reference = far_apart()
    image[10:12, 6:9, 40:44] = 1
    counts = counted(tmp_path, image, reference)
    assert counts.n.sum() == 16 * 16 * (44 + 10)
    # What a perfect sure network is off by: the label missed, and found where it is not. Two bins hold the image's two values.
    found = 2 * 3 * 4
    assert sorted(counts.n[counts.n > 0]) == [found, counts.n.sum() - found]
    assert counts.present.sum() == 64
    sure, unsure = (np.exp(-((v - np.arange(3)) ** 2)) for v in (1.0, 0.4))
    sure, unsure = (float(e[1] / e.sum()) for e in (sure, unsure))
    error = found * sure + abs((counts.n.sum() - found) * unsure - 64)
    assert counts.expected_error() == pytest.approx(error / counts.n.sum(), rel=1e-3)


def test_a_false_alarm_without_any_structure_is_counted_and_nothing_is_not(tmp_path):
    image, reference = far_apart()
    assert counted(tmp_path / "none", image, reference * 0) is None
    image[0:2, 0:2, 0:2] = 1
    assert counted(tmp_path / "one", image, reference * 0).n.sum() == (2 + 5) * (2 + 7) * (2 + 10)


def test_a_reference_on_another_grid_costs_its_case(tmp_path):
    scan(tmp_path)
    predictor = threshold_predictor(small_plan())
    write_volume(tmp_path / "other.nii.gz", np.ones((4, 4, 4), dtype=np.uint8), axis_grid((4, 4, 4)))
    image = load_image("a", [tmp_path / "in" / "a.nii.gz"], predictor.plan.channel_names, predictor.plan.orientation)
    with pytest.raises(CaseError, match="reference"):
        Reliability(predictor.plan, {"a": tmp_path / "other.nii.gz"}, tmp_path).sink_of("a", image)


def test_each_case_weighs_the_same_in_the_calibration():
    def case(name, n, present):
        bins = np.zeros((3, 15))
        bins[:, 10] = n, 0.7 * n, present * n
        return CaseReliability(case=name, bins={"l": tuple(tuple(row) for row in bins.tolist())})

    class Pooled:
        reliability = {"fold_0": [case("small", 10, 0.5)], "fold_1": [case("large", 10_000, 0.9)]}

    found = _calibration(Pooled(), ("l",))["l"]
    assert found.n_cases == 2
    assert (found.bins[0].probability, found.bins[0].frequency) == pytest.approx((0.7, 0.7))
    assert found.ece == pytest.approx(0.0)


def test_predictions_shown_to_an_onlooker_are_those_that_are_written(tmp_path):
    scan(tmp_path)
    predictor = threshold_predictor(small_plan())
    cases = find_inputs(tmp_path / "in", tmp_path / "plain", 1)
    predict(cases, predictor, tmp_path / "plain" / "p.jsonl")
    watched = find_inputs(tmp_path / "in", tmp_path / "watched", 1)
    predict(watched, predictor, tmp_path / "watched" / "p.jsonl", onlooker=lambda *_: lambda *_: None)
    one, two = (read_volume(c[0].output).array for c in (cases, watched))
    np.testing.assert_array_equal(one, two)
    assert torch.tensor(one.astype(np.int64)).unique().numel() > 1
