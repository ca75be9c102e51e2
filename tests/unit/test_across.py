import numpy as np
import pytest

from segpipe.core.labels import Labels
from segpipe.dataset.fingerprint.across import compare_cases, equal_images
from segpipe.dataset.fingerprint.case import MeasuredCase
from segpipe.dataset.fingerprint.measure import CaseMeasurements
from segpipe.dataset.fingerprint.schema import CaseFingerprint

CT = (-1000.0, -950.0, -100.0, 30.0, 60.0, 300.0, 1200.0)
MR = (5.0, 20.0, 100.0, 200.0, 300.0, 500.0, 800.0)


def case(name, spacing=(2.0, 1.0, 1.0), shape=(40, 100, 100), values=CT, labels=None, image=None, label=None):
    found = CaseFingerprint(
        case=name, shape=shape, spacing_mm=spacing, shape_after_crop=shape,
        label_voxels={1: 500, 2: 80} if labels is None else labels, percentiles=(tuple(map(float, values)),),
    )  # fmt: skip
    nothing = np.zeros((1, 0), dtype=np.float32)
    return MeasuredCase(CaseMeasurements(found, nothing), image or f"image {name}", label or f"label {name}")


def usual(n=8, seed=0, **same):
    """Good cases with the variety of good cases."""
    made, rng = [], np.random.default_rng(seed)
    for i in range(n):
        values = np.array(same.get("values", CT)) * rng.uniform(0.9, 1.1) + rng.normal(0, 15, 7)
        spacing = (float(rng.uniform(1, 5)), 1.0, float(rng.uniform(0.6, 1.2)))
        made.append(case(f"c{i}", **{"spacing": spacing, **same, "values": np.sort(values)}))
    return made


def warned(cases, declared=None, groups=None, name="image"):
    of = groups or {c.fingerprint.case: c.fingerprint.case for c in cases}
    return {(f.case, f.rule) for f in compare_cases(cases, declared, [name], of) if f.severity == "warning"}


def test_good_cases_give_no_warning():
    for seed in range(20):
        assert warned(usual(12, seed)) == set()
        assert warned(usual(12, seed, values=MR)) == set()


def test_scales_of_mr_are_arbitrary_and_differ():
    scales = [0.3, 0.5, 0.8, 1, 1.2, 1.5, 2, 3.5, 500]
    cases = [case(f"c{i}", values=np.array(MR) * s) for i, s in enumerate(scales)]
    assert warned(cases) == set()
    found = compare_cases(cases, None, ["MR"], {})
    assert [(f.case, f.severity, f.rule) for f in found] == [("c8", "note", "unusual intensities")]
    assert warned(cases, name="CT") == {("c8", "unusual intensities")}


@pytest.mark.parametrize(
    "odd",
    [
        np.linspace(0, 255, 7),  # saved as 8 bits
        np.array(CT) + 1024,  # without its intercept
        np.array(CT) * 4,
        [0.0, 0.1, 0.2, 0.4, 0.6, 0.8, 1.0],
    ],
)
def test_a_ct_that_lost_its_rescale(odd):
    assert warned([*usual(), case("odd", values=odd)]) == {("odd", "unusual intensities")}


def test_two_odd_cases_do_not_hide_each_other():
    odd = [case(f"odd{i}", values=np.linspace(0, 250 + i, 7)) for i in range(2)]
    assert warned([*usual(14), *odd]) == {("odd0", "unusual intensities"), ("odd1", "unusual intensities")}


def test_a_ct_in_hounsfield_units_among_shifted_ones():
    shifted = [case(f"c{i}", values=np.array(CT) + 1024 + i) for i in range(8)]
    assert warned([*shifted, case("odd")]) == {("odd", "unusual intensities")}


@pytest.mark.parametrize(
    "spacing", [(40, 40, 40), (0.002, 0.001, 0.001), (0.2, 0.1, 0.1), (20.0, 10.0, 10.0), (60, 1, 1)]
)
def test_a_header_of_another_unit(spacing):
    assert warned([*usual(), case("odd", spacing=spacing)]) == {("odd", "unusual spacing")}


def test_thick_slices_beside_isotropic_scans_are_usual():
    thick = [case(f"t{i}", spacing=(6, 0.5, 0.5), shape=(25, 400, 400)) for i in range(2)]
    isotropic = [case(f"i{i}", spacing=(0.5, 0.5, 0.5), shape=(300, 400, 400)) for i in range(6)]
    assert warned([*thick, *isotropic]) == set()


def test_one_slice_among_volumes():
    assert warned([*usual(), case("odd", shape=(1, 100, 100))]) == {("odd", "unusual extent")}


def test_a_slip_of_the_brush_and_a_value_of_one_case():
    cases = [*usual(), case("slip", labels={1: 500, 2: 80, 11: 1}), case("alone", labels={1: 500, 2: 80, 5: 300})]
    assert warned(cases) == {("slip", "rare label value"), ("alone", "rare label value")}
    # Who declares a value means it.
    declared = Labels.plain({"a": 1, "b": 2, "c": 5, "d": 11})
    assert warned(cases, declared) == set()
    assert [f.case for f in compare_cases(cases, declared, ["x"], {}) if f.severity == "note"] == ["slip"]


def test_an_image_in_the_place_of_a_label_is_one_warning():
    cases = [*usual(), case("odd", labels=dict.fromkeys(range(1, 155), 30))]
    assert warned(cases) == {("odd", "many label values")}


def test_a_label_that_equals_an_image():
    assert warned([*usual(2), case("odd", label="image c0")]) == {("odd", "label is an image")}


def test_one_image_under_two_ids():
    cases = [*usual(3), case("again", image="image c1")]
    assert warned(cases) == {("c1", "equal images")}
    assert equal_images(cases) == (("again", "c1"),)
    # Several readers of one scan are cases of one patient.
    assert warned(cases, groups={"c1": "p", "again": "p"}) == set()


def test_three_cases_are_too_few_to_tell_the_odd_one():
    assert warned([*usual(2), case("odd", spacing=(40, 40, 40))]) == set()


def test_one_label_of_several_images():
    cases = [case("a", label="one"), case("b", label="one"), case("c"), case("d", label="one", image="image a")]
    assert warned(cases) & {("b", "equal labels"), ("c", "equal labels"), ("d", "equal labels")} == {
        ("b", "equal labels")
    }
    message = next(f.message for f in compare_cases(cases, None, ["CT"], {}) if f.rule == "equal labels")
    assert message.startswith("its label equals that of a")


@pytest.mark.parametrize("labels", [{}, {1: 40 * 100 * 100}])
def test_labels_that_are_empty_or_full_may_be_equal(labels):
    assert warned([case("a", label="one", labels=labels), case("b", label="one", labels=labels)]) == set()


def test_one_label_of_several_images_of_a_patient_is_a_note():
    cases = [case("a", label="one"), case("b", label="one")]
    assert warned(cases, groups={"a": "P", "b": "P"}) == set()
