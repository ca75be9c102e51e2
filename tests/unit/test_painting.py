"""Whether regions can be read back once they are painted."""

import json
from itertools import permutations, product

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.core.geometry import Grid
from segpipe.core.labels import Labels, Target
from segpipe.core.painting import painting_problems, sets_not_given_back, working_order
from segpipe.core.volume import Volume
from segpipe.dataset.declared import read_labels_declaration
from segpipe.errors import DatasetError
from segpipe.workflows.import_ import painting_facts
from tests.engines import predictor_of
from tests.helpers.inference import small_plan

NESTED = {"wt": [1, 2, 3, 4], "tc": [1, 2, 3], "et": 1}
CROSSING = {"a": [1, 2], "b": [2, 3]}


def declared(labels, order):
    return read_labels_declaration({"labels": {"background": 0, **labels}, "regions_class_order": order})


def targets_of(labels, order):
    return tuple(
        Target(name=n, values=tuple(v) if isinstance(v, list) else (v,), paint=p)
        for (n, v), p in zip(labels.items(), order, strict=True)
    )


def read_back(targets, background=0):
    """Paint the regions of a row of all values over each other, and read the regions of the result: whether they are the same."""
    values = np.array([background, *sorted({v for t in targets for v in t.values})])
    painted = np.full_like(values, background)
    for target in targets:
        painted[np.isin(values, target.values)] = target.paint
    return all(np.array_equal(np.isin(values, t.values), np.isin(painted, t.values)) for t in targets)


@st.composite
def declarations(draw):
    values = st.lists(st.integers(1, 5), min_size=1, max_size=3, unique=True)
    regions = draw(st.lists(values, min_size=1, max_size=3))
    return tuple(
        Target(name=f"r{n}", values=tuple(own), paint=draw(st.sampled_from(own))) for n, own in enumerate(regions)
    )


@given(declarations())
def test_what_is_lost_is_what_painting_does_not_give_back(targets):
    assert read_back(targets) == (not sets_not_given_back(targets)) == (not painting_problems(targets))


@settings(max_examples=50)
@given(declarations())
def test_an_order_that_works_is_found_where_there_is_one(targets):
    found = working_order(targets)
    every = (
        tuple(t.model_copy(update={"paint": p}) for t, p in zip(order, paints, strict=True))
        for order in permutations(targets)
        for paints in product(*(t.values for t in order))
    )
    assert (found is not None) == any(read_back(order) for order in every)
    if found is not None:
        assert read_back(found)
        assert sorted(t.name for t in found) == sorted(t.name for t in targets)


@given(declarations())
def test_an_order_that_works_is_left_as_it_is(targets):
    if read_back(targets):
        assert read_back(working_order(targets))
        assert (
            read_labels_declaration(
                {"labels": {t.name: list(t.values) for t in targets}, "regions_class_order": [t.paint for t in targets]}
            ).targets
            == targets
        )


@given(declarations())
def test_each_declaration_is_refused_or_written_so_that_every_set_comes_back(targets):
    labels = Labels(targets=targets, regions=True, n_entries=len(targets) + 1, by_set=True)
    numbers = {numbers: len(targets) + 1 + k for k, numbers in enumerate(labels.own_sets.values())}
    for value in labels.values[1:]:
        inside = tuple(n for n, t in enumerate(targets) if value in t.values)
        painted = numbers.get(inside, inside[-1] + 1)
        written = int(labels.written(np.array(painted)))
        assert tuple(n for n, t in enumerate(targets) if written in t.values) == inside


@pytest.mark.parametrize(
    ("labels", "order", "says"),
    [
        # Innermost first: the outer regions paint over the inner ones.
        (
            dict(reversed(NESTED.items())), [1, 2, 4],
            r'value 1 \(et, tc, wt\) are written as 4, lost from et, tc; .*value 2 \(tc, wt\) are written as 4, lost from tc'
            r'.*Use "labels": {"wt": \[1, 2, 3, 4\], "tc": \[1, 2, 3\], "et": \[1\]}, "regions_class_order": \[4, 2, 1\]',
        ),
        # Outermost first, with a value that lies in an inner region too.
        (
            NESTED, [2, 3, 1],
            r'value 4 \(wt\) are written as 2, added to tc. Use .*"regions_class_order": \[4, 3, 1\]',
        ),
        # Two parts that do not meet, and their whole listed between them.
        (
            {"left": 1, "lung": [1, 2], "right": 2}, [1, 2, 2],
            r'value 1 \(left, lung\) are written as 2, lost from left and added to right. '
            r'Use "labels": {"left": \[1\], "lung": \[1, 2\], "right": \[2\]}, "regions_class_order": \[1, 1, 2\]',
        ),
    ],
)  # fmt: skip
def test_a_declaration_that_loses_regions_is_refused_with_one_that_does_not(labels, order, says):
    with pytest.raises(DatasetError, match=says) as refused:
        declared(labels, order)
    # What it says to use is used.
    said = json.loads("{" + str(refused.value).split("Use ")[1] + "}")
    assert not declared(said["labels"], said["regions_class_order"]).by_set


@pytest.mark.parametrize(
    ("labels", "order"),
    [
        (NESTED, [4, 2, 1]),
        (NESTED, [4, 3, 1]),
        # A whole without a value of its own.
        ({"lung": [1, 2], "left": 1, "right": 2}, [1, 1, 2]),
        ({"lung": [1, 2], "left": 1, "right": 2}, [2, 1, 2]),
        # Numbers as spreadsheets and other tools write them.
        ({"wt": ["1", 2.0], "et": "1"}, ["2", 1.0]),
    ],
)
def test_a_declaration_that_gives_all_back_is_taken(labels, order):
    found = declared(labels, order)
    assert (found.by_set, found.own_sets) == (False, {})
    assert read_back(found.targets)


@pytest.mark.parametrize(
    ("order", "own_sets"), [([1, 3], {2: (0, 1)}), ([1, 2], {3: (1,)}), ([2, 3], {1: (0,), 2: (0, 1)})]
)
def test_an_overlap_that_no_order_expresses_is_written_by_the_set(order, own_sets):
    found = declared(CROSSING, order)
    assert found.by_set
    assert found.own_sets == own_sets
    assert (found.value_of("a"), found.value_of("b")) == (1, 3)
    for value, numbers in own_sets.items():
        assert f"{' with '.join('ab'[n] for n in numbers)} written as {value}" in found.describe()


def test_without_an_order_one_that_works_is_named():
    with pytest.raises(
        DatasetError, match=r'such as "labels": {"wt": .*"tc": .*"et": .*"regions_class_order": \[4, 2, 1\]'
    ):
        declared(dict(reversed(NESTED.items())), None)


def test_labels_of_models_made_before_paint_in_order_and_keep_their_digest():
    old = Labels(targets=targets_of(CROSSING, [1, 3]), regions=True, n_entries=3)
    assert "by_set" not in old.model_dump_json()
    assert Labels.model_validate_json(old.model_dump_json()) == old
    assert old.own_sets == {}
    assert old.value_of("a") == 1
    now = declared(CROSSING, [1, 3])
    assert Labels.model_validate_json(now.model_dump_json()) == now
    assert now.by_set


def test_masks_are_scored_by_a_declaration_that_could_not_be_painted():
    content = {"labels": {"background": 0, **NESTED}, "regions_class_order": [2, 3, 1]}
    assert read_labels_declaration(content, any_order=True).targets == targets_of(NESTED, [2, 3, 1])
    del content["regions_class_order"]
    assert read_labels_declaration(content, any_order=True).names == ("wt", "tc", "et")
    crossing = {"labels": CROSSING, "regions_class_order": [1, 3]}
    assert read_labels_declaration(crossing, any_order=True) == read_labels_declaration(crossing)


def test_import_and_export_say_what_nnunets_painting_loses():
    assert painting_facts(Labels.plain({"a": 1})) == {}
    good, bad = (
        Labels(targets=targets_of(NESTED, order), regions=True, n_entries=4) for order in ([4, 2, 1], [2, 3, 1])
    )
    assert painting_facts(good) == {"painting": "every region is given back"}
    assert painting_facts(bad)["painting"] == (
        "as nnU-Net's, which loses regions: voxels of value 4 (wt) are written as 2, added to tc"
    )


def knowing(labels):
    """A predictor that says region a of 1 and 2, and region b of 2 and 3."""

    def forward(x):
        return torch.cat([1 - (x[:, :1] - 1.5).abs(), 1 - (x[:, :1] - 2.5).abs()], dim=1)

    return predictor_of(small_plan().model_copy(update={"labels": labels}), forward)


@pytest.mark.parametrize("spacing", [(2.0, 1.5, 1.0), (2.0, 3.0, 2.0)])
def test_crossing_regions_come_back_from_a_network_that_is_right(spacing):
    truth = np.zeros((8, 16, 16), dtype=np.uint8)
    truth[2:6, 2:14, 2:6], truth[2:6, 2:14, 6:10], truth[2:6, 2:14, 10:14] = 1, 2, 3
    image = truth.astype(np.float32)
    # Away from the borders, where interpolation decides.
    inner = np.ix_([3, 4], range(4, 12), [3, 4, 7, 8, 11, 12])
    labels = declared(CROSSING, [1, 3])
    found = knowing(labels).predict(image, spacing)
    np.testing.assert_array_equal(found[inner], truth[inner])
    # The same by probabilities, as ensembles have it.
    volume = Volume(image[None], Grid.of_spacing((8, 16, 16), spacing))
    shown = knowing(labels).segment(volume, sink=lambda *_: None).labels
    np.testing.assert_array_equal(shown, found)
    # A model that was trained before paints in order, as it did.
    old = knowing(labels.model_copy(update={"by_set": False})).predict(image, spacing)
    np.testing.assert_array_equal(old[inner], np.where(truth == 2, 3, truth)[inner])
