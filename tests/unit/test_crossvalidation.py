"""Splits, candidates, selection, statistics and words of a cross-validation, without training anything."""

import json
import math
from collections import Counter
from itertools import combinations, pairwise
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import wilcoxon
from sklearn.model_selection import KFold

import segpipe
from segpipe.core.labels import Labels, Target
from segpipe.crossvalidation.candidates import Candidate, Range, SearchSpace, parse_candidates, read_space
from segpipe.crossvalidation.design import n_candidates, plan_study
from segpipe.crossvalidation.files import read_folds, write_for_nnunet
from segpipe.crossvalidation.groups import describe_groups, groups_of, is_pattern, looks_grouped
from segpipe.crossvalidation.pool import Pooled, write_table
from segpipe.crossvalidation.schema import CrossvalDesign, OuterFold, Selection
from segpipe.crossvalidation.search import propose
from segpipe.crossvalidation.select import pairs_to_try, rank, shared_cases
from segpipe.crossvalidation.splits import (
    Request,
    as_listed,
    divide,
    divided_evenly,
    label_strata,
    leaving_out,
    with_test_set,
)
from segpipe.crossvalidation.statistics import paired_tests, spread
from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.dataset.match import match_dataset
from segpipe.dataset.schema import Case, Dataset
from segpipe.dataset.splits import Fold
from segpipe.errors import CrossvalError, NetworkError
from segpipe.evaluation.reliability import CaseReliability
from segpipe.evaluation.schema import CaseScores, Evaluation, LabelScore
from segpipe.evaluation.statistics import holm, rank_biserial, standardised_mean
from segpipe.metrics.calibration import N_BINS, Counts
from segpipe.planning.recipe import Recipe, TrainingSettings
from segpipe.workflows.crossval.asked import request_of, require_sound, splits_asked
from segpipe.workflows.options import CrossvalOptions

PATIENTS = {f"p{n // 2}_scan{n % 2}": f"p{n // 2}" for n in range(20)}


def asked(**options):
    return CrossvalOptions(dataset="d", **options)


def request(groups=PATIENTS, **more) -> Request:
    return Request(
        **{"groups": groups, "grouped_by": "patient", "n_folds": 5, "n_inner": 2, "seed": 7, "dataset_digest": "d"}
        | more
    )


def dataset(columns=None) -> Dataset:
    cases = [Case(id=c, images=(), label=None, group=None, columns=(columns or {}).get(c, {})) for c in PATIENTS]
    return Dataset(
        name="x",
        root=Path(),
        layout="pairs",
        channel_names=("a",),
        labels=None,
        cases=tuple(sorted(cases, key=lambda c: c.id)),
    )


def scores(case: str, **dice: float | None) -> CaseScores:
    def one(value):
        status = "not_applicable" if value is None else "scored"
        return LabelScore(
            status=status,
            dice=value,
            nsd=value,
            hd95_mm=None if value is None else 10 * (1 - value),
            volume_prediction_ml=1,
            volume_reference_ml=1,
        )

    return CaseScores(case=case, labels={name: one(value) for name, value in dice.items()})


def evaluation(*cases: CaseScores) -> Evaluation:
    return Evaluation(
        tolerance_mm=1,
        labels={"a": (1,)},
        cases=cases,
        by_label={},
        mean_dice=None,
        mean_nsd=None,
        mean_hd95_mm=None,
        n_missed=0,
    )


# Splits --------------------------------------------------------------------------------------------------------------------------


def test_every_case_is_tested_once_and_groups_stay_whole():
    splits = divided_evenly(request())
    assert Counter(c for f in splits.outer for c in f.test) == dict.fromkeys(PATIENTS, 1)
    for fold in splits.studies:
        for one, other in ((fold.train, fold.test), *((i.train, i.validation) for i in fold.inner)):
            assert not {PATIENTS[c] for c in one} & {PATIENTS[c] for c in other}
        assert Counter(c for i in fold.inner for c in i.validation) == dict.fromkeys(fold.train, 1)
    assert splits.final is not None
    assert set(splits.final.train) == set(PATIENTS)


@settings(max_examples=60, deadline=None)
@given(
    sizes=st.lists(st.integers(1, 4), min_size=4, max_size=25),
    n_parts=st.integers(2, 4),
    seed=st.integers(0, 2**31 - 1),
    sites=st.integers(1, 4),
)
def test_division_is_a_partition_of_whole_groups_and_no_part_is_empty(sizes, n_parts, seed, sites):
    groups = {f"g{g}_c{c}": f"g{g}" for g, size in enumerate(sizes) for c in range(size)}
    strata = {case: (f"site={int(case[1:].split('_')[0]) % sites}",) for case in groups}
    for chosen in ({}, strata):
        parts = divide(groups, n_parts, seed, chosen, "--folds")
        assert sorted(c for part in parts for c in part) == sorted(groups)
        held = [{groups[c] for c in part} for part in parts]
        assert all(held)
        assert sum(map(len, held)) == len(set(groups.values()))
        assert max(map(len, held)) - min(map(len, held)) <= 1
        assert divide(groups, n_parts, seed, chosen, "--folds") == parts


def test_without_groups_the_folds_are_those_of_nnunet():
    cases = {f"case_{n:03d}": f"case_{n:03d}" for n in range(23)}
    expected = KFold(5, shuffle=True, random_state=12345).split(sorted(cases))
    splits = divided_evenly(request(cases, seed=12345))
    assert [set(f.test) for f in splits.outer] == [{sorted(cases)[i] for i in held} for _, held in expected]


def test_a_rare_column_is_spread_evenly():
    """Three sites, one of them rare: stratified folds all see it, and no plain division is as even."""
    groups = {f"c{n:02d}": f"c{n:02d}" for n in range(30)}
    site = {c: "rare" if n < 5 else "A" if n < 18 else "B" for n, c in enumerate(groups)}
    strata = {c: (f"site={s}",) for c, s in site.items()}
    for seed in range(20):
        counted = [Counter(site[c] for c in part) for part in divide(groups, 5, seed, strata, "--folds")]
        assert [found["rare"] for found in counted] == [1] * 5
        assert all(2 <= found["A"] <= 3 for found in counted)
    plain = [Counter(site[c] for c in part)["rare"] for part in divide(groups, 5, 0, {}, "--folds")]
    assert plain != [1] * 5


def test_presence_and_volume_of_labels_are_strata():
    def case(name, voxels):
        return CaseFingerprint(
            case=name,
            shape=(1, 1, 1),
            spacing_mm=(2.0, 1.0, 1.0),
            shape_after_crop=(1, 1, 1),
            label_voxels=voxels,
            ignored_voxels=0,
            moments=(),
            percentiles=(),
        )

    cases = [case("a", {1: 10}), case("b", {1: 20}), case("c", {1: 300}), case("d", {})]
    strata = label_strata(cases, Labels.plain({"tumour": 1}))
    present = {"a": "small", "b": "medium", "c": "large"}
    assert strata == {c: ("tumour present", f"tumour {size}") for c, size in present.items()} | {
        "d": ("tumour absent",)
    }


def test_a_region_is_present_where_any_of_its_values_is():
    whole = Target(name="whole", values=(1, 2), paint=1)
    labels = Labels(targets=(whole, Target(name="core", values=(2,), paint=2)), regions=True, n_entries=3)
    one = CaseFingerprint(
        case="a", shape=(1, 1, 1), spacing_mm=(1.0, 1.0, 1.0), shape_after_crop=(1, 1, 1), label_voxels={1: 5}, ignored_voxels=0,
        moments=(), percentiles=(),
    )  # fmt: skip
    assert label_strata([one], labels) == {"a": ("whole present", "whole small", "core absent")}


def test_repeats_divide_anew_and_the_first_one_is_the_same():
    splits = divided_evenly(request(n_repeats=3))
    assert [f.name for f in splits.outer][:6] == [*(f"repeat_0_fold_{n}" for n in range(5)), "repeat_1_fold_0"]
    assert splits.n_repeats == 3
    by_repeat = [[f.test for f in splits.outer if f.repeat == r] for r in range(3)]
    assert by_repeat[0] == [f.test for f in divided_evenly(request()).outer]
    assert len({tuple(tests) for tests in by_repeat}) == 3


def test_leaving_out_a_site_and_a_patient_of_two_sites():
    values = {c: "A" if int(g[1:]) < 5 else "B/2" for c, g in PATIENTS.items()}
    splits = leaving_out(request(), values)
    assert [(f.name, len(f.test)) for f in splits.outer] == [("without_a", 10), ("without_b-2", 10)]
    alike = leaving_out(request(), {c: v.replace("A", "b-2") for c, v in values.items()})
    assert [(f.name, len(f.test)) for f in alike.outer] == [("without_b-2_0", 10), ("without_b-2_1", 10)]
    with pytest.raises(CrossvalError, match="group 'p0' is on both sides"):
        leaving_out(request(), values | {"p0_scan1": "B/2"})
    with pytest.raises(CrossvalError, match="has no value"):
        leaving_out(request(), values | {"p0_scan1": ""})
    with pytest.raises(CrossvalError, match="at least 2 values"):
        leaving_out(request(), dict.fromkeys(PATIENTS, "A"))


def test_a_fixed_test_set_and_what_is_wrong_with_one():
    test = [c for c, g in PATIENTS.items() if g in ("p1", "p2")]
    splits = with_test_set(request(), test)
    assert [set(f.test) for f in splits.outer] == [set(test)]
    with pytest.raises(CrossvalError, match="group 'p1' is on both sides"):
        with_test_set(request(), test[1:])
    with pytest.raises(CrossvalError, match="not among the dataset's usable cases, such as 'nobody'"):
        with_test_set(request(), ["nobody"])
    with pytest.raises(CrossvalError, match="0 of 20 cases"):
        with_test_set(request(), [])


def test_too_few_groups_is_a_clear_error():
    few = {c: g for c, g in PATIENTS.items() if g in ("p0", "p1", "p2")}
    with pytest.raises(CrossvalError, match=r"--folds 5: 6 case\(s\) in 3 group\(s\)"):
        divided_evenly(request(few))
    with pytest.raises(CrossvalError, match=r"--inner-folds in fold_0 3: 4 case\(s\) in 2 group\(s\)"):
        divided_evenly(request(few, n_folds=3, n_inner=3))


def test_overlap_is_found_at_every_use():
    splits = divided_evenly(request())
    first = splits.outer[0]
    leaking = first.model_copy(update={"train": (*first.train, first.test[0])})
    with pytest.raises(CrossvalError, match="is on both sides"):
        splits.model_copy(update={"outer": (leaking, *splits.outer[1:])}).require_apart()
    inner = first.inner[0].model_copy(update={"validation": (*first.inner[0].validation, first.test[0])})
    beyond = first.model_copy(update={"inner": (inner, *first.inner[1:])})
    with pytest.raises(CrossvalError, match="which is not a training case of fold_0"):
        splits.model_copy(update={"outer": (beyond, *splits.outer[1:])}).require_apart()
    with pytest.raises(CrossvalError, match="is tested twice in repeat 0"):
        splits.model_copy(update={"outer": (*splits.outer, first.model_copy(update={"name": "again"}))}).require_apart()


def test_nnunet_s_file_is_read_and_ours_is_written_like_it(tmp_path):
    splits = divided_evenly(request())
    write_for_nnunet(splits, tmp_path / "splits_final.json")
    listed = json.loads((tmp_path / "splits_final.json").read_text(encoding="utf-8"))
    assert [set(fold) for fold in listed] == [{"train", "val"}] * 5
    read = read_folds(tmp_path / "splits_final.json")
    assert [(f.train, f.validation) for f in read] == [(f.train, f.test) for f in splits.outer]
    again = as_listed(request(), read)
    assert [(f.train, f.test) for f in again.outer] == [(f.train, f.test) for f in splits.outer]
    inner = json.loads((tmp_path / "splits_final.fold_1.json").read_text(encoding="utf-8"))
    assert [tuple(fold["val"]) for fold in inner] == [i.validation for i in splits.outer[1].inner]
    splits.write(tmp_path / "splits.json")
    assert read_folds(tmp_path / "splits.json") == read


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[]", "holds no folds"),
        ("[{}]", "fold 0 has no lists"),
        ("nothing", "is not JSON"),
        ('[{"train": [], "val": ["a"]}]', "fold 0 has no lists"),
    ],
)
def test_a_wrong_file_of_splits_is_refused(tmp_path, content, message):
    (tmp_path / "splits.json").write_text(content, encoding="utf-8")
    with pytest.raises(CrossvalError, match=message):
        read_folds(tmp_path / "splits.json")


def test_a_file_whose_cases_are_tested_again_has_repeats():
    splits = divided_evenly(request(n_repeats=2))
    listed = [Fold(train=f.train, validation=f.test) for f in splits.outer]
    again = as_listed(request(), listed)
    assert again.n_repeats == 2
    assert [f.repeat for f in again.outer] == [f.repeat for f in splits.outer]


def test_a_file_that_divides_a_patient_is_refused():
    case = next(iter(PATIENTS))
    fold = Fold(train=tuple(c for c in PATIENTS if c != case), validation=(case,))
    with pytest.raises(CrossvalError, match="group 'p0' is on both sides"):
        as_listed(request(), [fold])


# Groups --------------------------------------------------------------------------------------------------------------------------


def test_groups_by_a_column_a_pattern_or_not_at_all():
    columns = {c: {"patient": g, "site": "A"} for c, g in PATIENTS.items()}
    assert groups_of(dataset(columns), PATIENTS, "patient") == ("patient", dict(sorted(PATIENTS.items())))
    assert groups_of(dataset(), PATIENTS, r"^(p\d+)_") == (r"^(p\d+)_", dict(sorted(PATIENTS.items())))
    assert groups_of(dataset(), PATIENTS, r"p\d+")[1] == dict(sorted(PATIENTS.items()))
    assert groups_of(dataset(), PATIENTS, None)[0] == "case"
    assert is_pattern(dataset(columns), "^p")
    assert not is_pattern(dataset(columns), "site")
    assert describe_groups(PATIENTS)[0] == ("p0", "p0_scan0, p0_scan1")
    assert describe_groups(PATIENTS)[-1] == ("4 more", "4 of 2 case(s)")


def test_a_column_or_pattern_that_does_not_fit_is_refused():
    columns = {c: {"patient": g} for c, g in PATIENTS.items()} | {"p3_scan0": {}}
    with pytest.raises(CrossvalError, match=r"1 case.* no value in that column, such as 'p3_scan0'"):
        groups_of(dataset(columns), PATIENTS, "patient")
    with pytest.raises(
        CrossvalError, match=r"does not match the case 'p0_scan0'; expected a column .the manifest has patient"
    ):
        groups_of(dataset(columns), PATIENTS, "hospital")
    with pytest.raises(CrossvalError, match="not a regular expression"):
        groups_of(dataset(), PATIENTS, "(")


def test_ids_that_look_like_several_scans_are_pointed_out():
    assert "2 case ids begin with 'p0'" in looks_grouped(list(PATIENTS))
    assert looks_grouped([f"hippocampus_{n}" for n in range(20)]) is None
    assert looks_grouped([f"case{n}" for n in range(20)]) is None


def test_groups_that_would_part_a_patient_are_refused():
    columns = {c: {"patient": g, "scanner": c[-1], "site": g[-1]} for c, g in PATIENTS.items()}
    known = dataset(columns)
    known = known.model_copy(
        update={"cases": tuple(c.model_copy(update={"group": PATIENTS[c.id]}) for c in known.cases)}
    )
    for by in ("scanner", "case", r"scan(\d)"):
        with pytest.raises(CrossvalError, match="patient 'p0' has cases in the groups"):
            groups_of(known, PATIENTS, by)
    assert groups_of(known, PATIENTS, "site")[0] == "site", "a site keeps its patients whole"


def test_columns_of_a_manifest_are_kept(data):
    matched = match_dataset(data / "cardiac_cine")
    by, groups = groups_of(matched, [c.id for c in matched.cases], "patient")
    assert (by, len(set(groups.values()))) == ("patient", 5)
    assert matched.cases[0].columns == {"patient": "p101"}


# Candidates ----------------------------------------------------------------------------------------------------------------------


def test_candidates_as_text_and_back():
    text = '2d,3d_fullres+u2netp,3d_fullres+plain_unet:width=0.5,norm="batch"@learning_rate=0.02,augmentation.enabled=false'
    found = parse_candidates((text,))
    assert [c.configuration for c in found] == ["2d", "3d_fullres", "3d_fullres"]
    assert found[2].network == 'plain_unet:norm="batch",width=0.5'
    assert found[2].settings == {"learning_rate": 0.02, "augmentation.enabled": False}
    assert parse_candidates((found[2].text,))[0] == found[2]
    changed = found[2].changed(TrainingSettings())
    assert (changed.learning_rate, changed.augmentation.enabled, changed.momentum) == (0.02, False, 0.99)
    assert found[0].changed(TrainingSettings()) == TrainingSettings()


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (("4d",), "expected one of 2d"),
        (("2d", "2d"), "2d stands twice"),
        (("2d@x",), "expected key=value"),
        ((), "none given"),
    ],
)
def test_wrong_candidates_are_refused(texts, message):
    with pytest.raises(CrossvalError, match=message):
        parse_candidates(texts)


@pytest.mark.parametrize(
    ("settings_", "message"),
    [
        ({"momentun": 1}, "no setting 'momentun'"),
        ({"momentum": 2}, "momentum: Input should be less than 1"),
        ({"loss.x": 1}, "no setting"),
    ],
)
def test_wrong_settings_are_refused(settings_, message):
    with pytest.raises(CrossvalError, match=message):
        Candidate(configuration="2d", settings=settings_).changed(TrainingSettings())


def test_a_space_is_every_combination_or_a_search(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(
        'configuration = ["2d", "3d_fullres"]\n[training]\nlearning_rate = [0.01, 0.1]\n"augmentation.enabled" = [true, false]\n',
        encoding="utf-8",
    )
    assert len(read_space(path).candidates()) == 8
    path.write_text(
        'configuration = ["2d"]\n[training]\nlearning_rate = {low = 0.001, high = 0.1, log = true}\n', encoding="utf-8"
    )
    with pytest.raises(CrossvalError, match="is a range; give --trials"):
        read_space(path).candidates()
    path.write_text('configuration = ["2d"]\nnetworks = ["u2net"]\n', encoding="utf-8")
    with pytest.raises(CrossvalError, match="networks: Extra inputs"):
        read_space(path)


def designed(**more) -> CrossvalDesign:
    about = {"software": "0", "dataset_name": "x", "recipe": Recipe(name="r", description="d"), "inner_folds": 2}
    return CrossvalDesign(**about | more)


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"settings": {"momentun": (0.9,)}}, "no setting 'momentun'"),
        ({"settings": {"momentum": Range(low=0.5, high=1.5)}}, "momentum: Input should be less than 1"),
        ({"network": ("nothing",)}, "nothing"),
        ({"settings": {"patience_epochs": (3, 5)}}, "--refit: candidate 2d@patience_epochs=3 stops by held-out cases"),
    ],
)
def test_what_a_search_might_propose_is_checked_before_it_begins(space, message):
    with pytest.raises((CrossvalError, NetworkError), match=message):
        require_sound(designed(space=SearchSpace(configuration=("2d",), **space), n_trials=3, refit=True))


def test_alternatives_are_given_once():
    with pytest.raises(ValueError, match="each once"):
        SearchSpace(configuration=("2d",), network=("plain_unet:width=0.5", "plain_unet:width=0.5"))
    assert Candidate(configuration="2d", network="plain_unet:width=0.5,norm=batch") == Candidate(
        configuration="2d", network="plain_unet:norm=batch,width=0.5"
    )


def test_a_cluster_is_told_its_recipe(tmp_path):
    with pytest.raises(CrossvalError, match="give --recipe default for GPUs, or cpu"):
        segpipe.crossval(tmp_path, cluster="tcp://127.0.0.1:1")


def test_a_number_of_folds_that_means_nothing_is_refused():
    with pytest.raises(CrossvalError, match=r"--folds 4 with --leave-out: it says itself how many"):
        splits_asked(request(), dataset(), asked(leave_out="site", folds=4))
    assert len(splits_asked(request(n_folds=4), dataset(), asked(folds=4)).outer) == 4
    measured = SimpleNamespace(cases=[SimpleNamespace(case=c) for c in PATIENTS], digest=lambda: "d", equal_images=())
    with pytest.raises(CrossvalError, match="--inner-folds 4 with --no-nested"):
        request_of(dataset(), measured, asked(inner_folds=4, nested=False))
    made = request_of(dataset(), measured, asked(nested=False))
    assert (made.n_folds, made.n_inner) == (5, 3)


def test_equal_images_are_of_one_group_whatever_groups_are_asked_for():
    first, *_, last = sorted(PATIENTS)
    cases = [SimpleNamespace(case=c) for c in PATIENTS]
    measured = SimpleNamespace(cases=cases, digest=lambda: "d", equal_images=((first, last),))
    for how in ({}, {"group_by": "case"}):
        groups = request_of(dataset(), measured, asked(**how)).groups
        assert groups[first] == groups[last]


def test_without_nesting_a_file_tests_each_case_once():
    once = divided_evenly(request(nested=False)).final.inner
    assert as_listed(request(nested=False), once).final.inner == once
    with pytest.raises(CrossvalError, match="fold_5 tests cases that another fold tests too"):
        as_listed(request(nested=False), (*once, once[2]))


def test_without_nesting_there_are_no_repeats():
    with pytest.raises(CrossvalError, match="--repeats 3 with --no-nested"):
        splits_asked(request(n_repeats=3, nested=False), dataset(), asked())
    with pytest.raises(CrossvalError, match="two ways to divide"):
        splits_asked(request(), dataset(), asked(leave_out="site", test_set="a.txt"))
    with pytest.raises(CrossvalError, match="nothing would be left"):
        require_sound(designed(nested=False, final=False))


def test_a_search_goes_where_scores_are_high_repeats_itself_and_nothing():
    space = SearchSpace(
        configuration=("2d", "3d_fullres"), settings={"learning_rate": Range(low=1e-4, high=1.0, log=True)}
    )

    def score(candidate):
        return -abs(math.log10(candidate.settings["learning_rate"]) + 2) - (candidate.configuration == "2d")

    def searched(seed):
        trials = []
        for _ in range(25):
            candidate = propose(space, trials, seed)
            assert candidate not in [c for c, _ in trials]
            trials.append((candidate, score(candidate)))
        return trials

    trials = searched(0)
    assert trials == searched(0)
    assert trials != searched(1)
    late = [score(c) for c, _ in trials[15:]]
    assert np.mean(late) > np.mean([s for _, s in trials[:5]])
    # Those that failed count as tried: the search goes on to others.
    failed = []
    for _ in range(6):
        failed.append((propose(space, failed, 0), None))
    assert len({c.text for c, _ in failed}) == 6
    small = SearchSpace(configuration=("2d", "3d_fullres"), settings={"momentum": (0.9, 0.99)})
    tried = []
    for _ in range(4):
        tried.append((propose(small, tried, 3), 0.5))
    assert len({c.text for c, _ in tried}) == 4


# The graph -----------------------------------------------------------------------------------------------------------------------


def study_graph(**more):
    candidates = tuple(Candidate(configuration=c) for c in ("3d_lowres", "3d_cascade_fullres"))
    design = designed(**{"candidates": candidates} | more)
    fold = Fold(train=("a",), validation=("b",))
    study = OuterFold(name="fold_0", repeat=0, train=("a", "b"), test=("t",), inner=(fold, fold))
    jobs = {}

    def make(kind, *, candidate=None, fold=None, configuration=None, needs=(), after=()):
        name = "_".join(str(p) for p in (kind, candidate, fold, configuration) if p is not None)
        assert {*needs, *after} <= set(jobs), "a job comes after those that it waits for"
        jobs[name] = {*needs, *after}
        return name

    plan_study(design, study, make)
    return design, jobs


def test_nothing_that_chooses_waits_for_a_test():
    _, jobs = study_graph()

    def before(job):
        return set().union(*({other} | before(other) for other in jobs[job])) if jobs[job] else set()

    choosing = [job for job in jobs if not job.startswith("test")]
    assert not any(other.startswith("test") for job in choosing for other in before(job))
    assert all("select" in before(job) for job in jobs if job.startswith("test"))
    assert {"train_0_0", "train_0_1"} <= jobs["train_1_0"], "a cascade waits for every fold of its first stage"
    assert "prepare_3d_fullres" in jobs["train_1_0"]


def test_in_a_search_each_candidate_waits_for_the_scores_before():
    space = SearchSpace(configuration=("2d",), settings={"momentum": (0.9, 0.95, 0.99)})
    design, jobs = study_graph(candidates=(), space=space, n_trials=2)
    assert n_candidates(design) == 2
    assert {"train_0_0", "train_0_1"} <= jobs["candidate_1"]
    assert not any(job.startswith("test_candidate") for job in jobs)


# Selection and statistics --------------------------------------------------------------------------------------------------------


def test_all_are_ranked_on_the_same_cases_and_of_equals_the_smaller_wins():
    singles = {
        "a": [evaluation(scores("x", l=0.8), scores("y", l=0.6)), evaluation(scores("z", l=0.7))],
        "b": [evaluation(scores("x", l=0.9), scores("y", l=0.7)), evaluation()],
        "c": [evaluation(scores("x", l=0.1), scores("y", l=0.1)), evaluation(scores("z", l=1.0))],
    }
    evaluated = {(name,): found for name, found in singles.items()} | {("b", "c"): singles["b"]}
    cases = shared_cases(evaluated)
    assert cases == ("x", "y")
    ranked = rank(evaluated, cases)
    assert [r.members for r in ranked] == [("b",), ("b", "c"), ("a",), ("c",)]
    assert ranked[0].mean_dice == pytest.approx(0.8)
    assert pairs_to_try(singles)[0] == ("b", "a")
    many = {f"m{n}": [evaluation(scores("x", l=n / 10))] for n in range(8)}
    assert pairs_to_try(many) == list(combinations(["m7", "m6", "m5", "m4"], 2))


def test_means_are_over_labels_of_their_means():
    """A label that few cases have weighs as much as one that all have; one that none has does not count."""
    found = rank(
        {
            ("a",): [
                evaluation(scores("x", l=1.0, rare=0.0), scores("y", l=1.0, rare=None), scores("z", l=1.0, rare=None))
            ]
        },
        ("x", "y", "z"),
    )
    assert found[0].mean_dice == 0.5


def test_a_patient_counts_once_however_many_scans():
    folds = {"fold_0": [scores("a1", l=1.0), scores("a2", l=0.0)], "fold_1": [scores("b1", l=1.0)]}
    found = spread(folds, {"a1": "a", "a2": "a", "b1": "b"}, "l", "dice")
    assert (found.n_patients, found.mean, found.median) == (2, 0.75, 0.75)
    assert found.fold_means == {"fold_0": 0.5, "fold_1": 1.0}
    assert found.between_folds_sd == pytest.approx(np.std([0.5, 1.0], ddof=1))
    assert found.low == 0.5
    assert found.high == 1.0


def test_the_interval_covers_the_mean_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(200):
        folds = {"f": [scores(str(n), l=float(v)) for n, v in enumerate(np.clip(rng.normal(0.7, 0.1, 30), 0, 1))]}
        found = spread(folds, {str(n): str(n) for n in range(30)}, "l", "dice")
        covered += found.low <= 0.7 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_holm_is_that_of_the_definition():
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
    # A test that could not be made still counts as one of the family.
    assert holm([0.01, None]) == pytest.approx([0.02, None])


@given(st.lists(st.floats(0, 1), min_size=1, max_size=8))
def test_holm_keeps_the_order_and_lies_between_p_and_bonferroni(values):
    corrected = holm(values)
    for p, adjusted in zip(values, corrected, strict=True):
        assert p - 1e-12 <= adjusted <= min(1.0, p * len(values)) + 1e-12
    order = np.argsort(values, kind="stable")
    assert all(corrected[a] <= corrected[b] + 1e-12 for a, b in pairwise(order))


def test_paired_tests_are_those_of_scipy_with_effect_sizes():
    rng = np.random.default_rng(1)
    first = {str(n): float(v) for n, v in enumerate(rng.uniform(0.5, 0.8, 12))}
    second = {n: v + float(rng.normal(0.05, 0.03)) for n, v in first.items()}
    given = {
        name: {"fold_0": [scores(n, l=v) for n, v in side.items()]} for name, side in (("a", first), ("b", second))
    }
    told = paired_tests(given, {n: n for n in first})
    deltas = np.array([second[n] - first[n] for n in sorted(first)])
    assert len(told) == 1
    assert told[0].p == pytest.approx(wilcoxon(deltas).pvalue)
    assert told[0].p_holm == told[0].p
    assert told[0].mean == pytest.approx(deltas.mean())
    assert told[0].standardised_mean == pytest.approx(deltas.mean() / deltas.std(ddof=1))
    total = len(deltas) * (len(deltas) + 1) / 2
    against = wilcoxon(deltas, alternative="two-sided").statistic
    assert told[0].rank_biserial == pytest.approx(1 - 2 * against / total)


def test_repeats_are_paired_with_themselves():
    """What one gains in a repeat and loses in the other is nothing; and the other way round it is the same nothing."""
    patients = {str(n): str(n) for n in range(8)}
    high, low = ([scores(n, l=value) for n in patients] for value in (0.9, 0.5))
    one = {"repeat_0_fold_0": low, "repeat_1_fold_0": high}
    two = {"repeat_0_fold_0": high, "repeat_1_fold_0": low}
    assert paired_tests({"a": one, "b": two}, patients)[0].mean == 0.0
    better = {name: [scores(n, l=0.6) for n in patients] for name in one}
    there, back = (
        paired_tests(dict(pair), patients)[0] for pair in ((("a", one), ("b", better)), (("b", better), ("a", one)))
    )
    assert there.mean == pytest.approx(-0.1)
    assert back.mean == pytest.approx(0.1)
    assert back.p == there.p
    # A fold that one candidate lacks is not compared.
    assert paired_tests({"a": one, "b": {"repeat_0_fold_0": high}}, patients)[0].mean == pytest.approx(0.4)


def test_effect_sizes_at_their_ends():
    assert rank_biserial(np.array([0.1, 0.2, 0.0])) == 1.0
    assert rank_biserial(np.array([-0.1, -0.2])) == -1.0
    assert rank_biserial(np.zeros(3)) is None
    assert standardised_mean(np.array([0.1, 0.1])) is None
    assert standardised_mean(np.array([0.1])) is None


# Calibration ---------------------------------------------------------------------------------------------------------------------


def test_probabilities_that_are_frequencies_have_no_error():
    rng = np.random.default_rng(0)
    said = rng.uniform(0, 1, 400_000)
    right = Counts.of(said, rng.uniform(0, 1, said.size) < said)
    assert right.expected_error() < 0.005
    sure = Counts.of(np.ones(1000), np.arange(1000) < 700)
    assert sure.expected_error() == pytest.approx(0.3)
    both = right + sure
    assert both.n.sum() == 401_000
    assert len(both.n) == N_BINS
    assert right.weighing_one().n.sum() == pytest.approx(1)
    assert math.isnan(Counts.none().expected_error())


def test_a_label_that_its_study_did_not_know_has_a_row_without_calibration(tmp_path):
    splits = divided_evenly(request())
    first = splits.outer[0]
    known = CaseReliability(case=first.test[0], bins={"l": ((1.0,) * N_BINS,) * 3})
    selection = Selection(study="fold_0", ranking=(), winner=("2d",), cases=(), postprocessing={})
    pooled = Pooled(
        scores={"fold_0": (scores(first.test[0], l=0.5, rare=0.0),)},
        reliability={"fold_0": [known]},
        selections={"fold_0": selection},
    )
    write_table(tmp_path / "cases.csv", splits, pooled)
    lines = (tmp_path / "cases.csv").read_text(encoding="utf-8").splitlines()
    assert len(lines) == 3
    assert [line.split(",")[11] for line in lines[1:]] == ["0", ""]
