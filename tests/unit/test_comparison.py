"""Models held against each other: statistics by hand, and what a comparison of real model files says."""

import json

import numpy as np
import pytest
import torch
from scipy.stats import wilcoxon

import segpipe
from segpipe.errors import ModelError
from segpipe.evaluation.comparison import ALL_LABELS, Comparison
from segpipe.evaluation.schema import CaseScores, LabelScore
from segpipe.evaluation.statistics import (
    bootstrap_interval,
    difference,
    kept_share,
    paired_scores,
    retention,
    signed_rank_p,
)
from segpipe.networks.build import build_network
from segpipe.networks.measure import macs
from segpipe.networks.spec import parse_choice
from segpipe.planning.schema import Plan
from segpipe.planning.variant import with_network
from segpipe.reporting.comparison import markdown
from segpipe.workflows.compare.cost import count
from segpipe.workflows.scoring import Models
from tests.unit.test_engine import Notes, workplace  # noqa: F401 - a fixture
from tests.unit.test_nnunet_models import model_of


def case(name, **dice):
    labels = {
        label: LabelScore(
            status="not_applicable" if value is None else "scored",
            dice=value,
            nsd=value,
            hd95_mm=None if value is None else 10 * (1 - value),
            volume_prediction_ml=1,
            volume_reference_ml=1,
        )
        for label, value in dice.items()
    }
    return CaseScores(case=name, labels=labels)


CASES = (case("a1", liver=0.9, lesion=0.5), case("a2", liver=0.7, lesion=None), case("b1", liver=0.6, lesion=0.2))
PATIENTS = {"a1": "a", "a2": "a", "b1": "b"}


def scores(label, other=CASES, metric="dice"):
    return paired_scores(CASES, other, PATIENTS, label, metric)


def test_scores_are_those_of_patients():
    assert scores("liver")[0] == pytest.approx({"a": 0.8, "b": 0.6})
    assert scores("lesion")[0] == pytest.approx({"a": 0.5, "b": 0.2})
    # Each case's mean over the labels that it has, then each patient's over its cases.
    assert scores(ALL_LABELS)[0] == pytest.approx({"a": 0.7, "b": 0.4})


def test_both_models_are_scored_on_the_same_cases_and_labels():
    # The second falsely finds a lesion in a2, which the first rightly leaves out; and it lost b1.
    other = (CASES[0], case("a2", liver=0.7, lesion=0.0))
    assert scores("lesion", other) == ({"a": pytest.approx(0.75)}, {"a": pytest.approx(0.25)})
    assert scores("lesion", other, "hd95_mm") == ({"a": pytest.approx(2.5)}, {"a": pytest.approx(7.5)})
    assert set(scores("liver", other)[0]) == {"a"}
    found = retention("s", CASES, other, PATIENTS, parameters=5, macs=None)
    assert found.dice_percent == pytest.approx(100 * (0.7 + 0.35) / 2 / ((0.7 + 0.85) / 2))
    assert found.lowest_label == "lesion"


def test_a_difference_is_paired_with_its_interval_and_its_test():
    rng = np.random.default_rng(0)
    first = {f"p{i}": float(v) for i, v in enumerate(rng.uniform(0.6, 0.9, 20))}
    second = {p: v + 0.02 + 0.01 * float(rng.normal()) for p, v in first.items()}
    found = difference(("x", "y"), (first, second), "liver", "dice")
    deltas = np.array([second[p] - first[p] for p in sorted(second)])
    assert found.n_patients == 20
    assert found.mean == pytest.approx(deltas.mean())
    assert found.low < found.mean < found.high
    assert found.low > 0
    assert found.p == pytest.approx(wilcoxon(deltas).pvalue)
    # As wide as the standard error says.
    assert (found.high - found.low) / 2 == pytest.approx(1.96 * deltas.std(ddof=1) / np.sqrt(20), rel=0.15)


def test_few_patients_and_no_difference_have_no_test():
    assert signed_rank_p(np.array([0.1, 0.2, 0.3, 0.4])) is None
    assert signed_rank_p(np.zeros(30)) is None
    assert bootstrap_interval(np.array([0.1])) == (None, None)
    assert difference(("x", "y"), ({}, {}), "liver", "dice").mean is None


def test_kept_shares_draw_both_models_on_the_same_patients():
    teacher = {f"p{i}": v for i, v in enumerate(np.random.default_rng(1).uniform(0.2, 0.9, 25))}
    student = {p: 0.95 * v for p, v in teacher.items()}
    # A student that keeps 95 % of each patient keeps 95 % of every draw, however much patients differ.
    assert kept_share(teacher, student) == pytest.approx((95.0, 95.0, 95.0))
    assert kept_share({"a": 0.0}, {"a": 0.5}) == (None, None, None)
    found = retention("s", CASES, (case("a1", liver=0.45, lesion=0.5), *CASES[1:]), PATIENTS, parameters=5, macs=6)
    assert found.lowest_label == "liver"
    assert found.lowest_label_percent == pytest.approx(100 * (0.575 + 0.6) / (0.8 + 0.6))
    assert found.dice_percent < 100


def test_models_are_measured_scored_and_told_apart(workplace, tmp_path):  # noqa: F811 - the fixture
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    narrow = with_network(plan, None, parse_choice("planned:width=0.5,multiple=2"), None)
    teacher, student = tmp_path / "big.segpipe", tmp_path / "student" / "model.segpipe"
    model_of(plan, folds=("0", "1")).write(teacher)
    model_of(narrow).write(student)
    notes = Notes()
    found = segpipe.compare([teacher, student], dataset=folder, work=workspace.root, device="cpu", jobs=1, watch=notes)
    assert [m.name for m in found.models] == ["big", "student"]
    big, small = found.models
    network = build_network(plan.configuration("3d_fullres").network, 1, 3)
    assert big.parameters == sum(p.numel() for p in network.parameters())
    assert big.folds == ("0",)
    # Eight mirror images of the windows of one patch a case.
    assert big.macs_per_case == 8 * macs(network, 1, plan.configuration("3d_fullres").patch_size)
    assert count(Models((teacher,), ("0", "1"), tta=False)).macs_per_window == big.macs_per_case // 4
    assert found.retention[0].parameters_percent == pytest.approx(100 * small.parameters / big.parameters)
    assert big.file_mb == pytest.approx(big.parameters * 4 / 1e6, rel=0.02)
    assert all(m.latency[0].seconds_per_case > 0 and m.latency[0].peak_memory_gb > 0.05 for m in found.models)
    assert len(found.cases) == 2
    assert {d.label for d in found.differences} == {ALL_LABELS, "cube_1", "cube_2"}
    written = workspace.root / "comparisons" / "fold_0"
    assert Comparison.read(written / "comparison.json") == found
    assert (written / "comparison.png").stat().st_size > 5000
    page = (written / "comparison.md").read_text()
    assert page == markdown(found)
    assert "| big |" in page
    # The scores are those of `segpipe evaluate` on what was written.

    scored = segpipe.evaluate(
        written / "predictions" / "student" / "cpu", folder / "labels", labels=folder / "dataset.json", jobs=1
    )
    assert scored.mean_dice == pytest.approx(found.scores["student"].by_label[ALL_LABELS]["dice"])
    assert len(list((written / "predictions" / "student").rglob("case_*"))) == 2
    with pytest.raises(ModelError, match="given twice"):
        segpipe.compare([teacher, teacher], dataset=folder, work=workspace.root)


def test_a_case_that_fails_is_told_and_the_others_are_compared(workplace, tmp_path):  # noqa: F811
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    good, bad = tmp_path / "good.segpipe", tmp_path / "bad.segpipe"
    model_of(plan).write(good)
    spoilt = model_of(plan)
    for value in spoilt.folds["0"].values():
        value.fill_(torch.nan)
    spoilt.write(bad)
    found = segpipe.compare([good, bad], dataset=folder, work=workspace.root, device="cpu", tta=False, jobs=1)
    assert not found.scores["good"].failed
    assert len(found.scores["bad"].failed) == 2
    assert "not finite" in next(iter(found.scores["bad"].failed.values()))
    assert found.scores["bad"].by_label[ALL_LABELS]["dice"] is None
    assert found.retention[0].dice_percent is None
    assert "not finite" in markdown(found)
    assert json.loads(found.to_json())["retention"][0]["dice_percent"] is None
    # The other way round too, where the first model is the one that could compute nothing.
    turned = segpipe.compare([bad, good], dataset=folder, work=workspace.root, device="cpu", tta=False, jobs=1)
    assert turned.retention[0].macs_percent is None
    assert "| bad |" in markdown(turned)


def test_labels_of_a_model_are_the_datasets_by_name_and_folds_are_doubted(workplace, tmp_path):  # noqa: F811
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    values = {"cube_1": 7, "cube_2": 1}
    targets = tuple(
        t.model_copy(update={"values": (values[t.name],), "paint": values[t.name]}) for t in plan.labels.targets
    )
    other = plan.model_copy(update={"labels": plan.labels.model_copy(update={"targets": targets})})
    same, renamed = tmp_path / "same.segpipe", tmp_path / "renamed.segpipe"
    model_of(plan, folds=("0", "1")).write(same)
    model_of(other, folds=("0", "1")).write(renamed)
    notes = Notes()
    found = segpipe.compare(
        [same, renamed], dataset=folder, work=workspace.root, device="cpu", tta=False, jobs=1, watch=notes,
        folds={same: ("0", "1")},
    )  # fmt: skip
    alone = segpipe.compare([same], dataset=folder, work=workspace.root, device="cpu", tta=False, jobs=1)
    assert found.scores["renamed"].by_label == alone.scores["same"].by_label
    assert any(note.startswith("same: fold(s) 0, 1: may have seen") for note in notes.notes)
    assert any(note.startswith("renamed: its fold 0 is taken for") for note in notes.notes)


def test_a_teacher_of_nnunet_can_be_compared(workplace, tmp_path):  # noqa: F811
    folder, workspace = workplace(batch=2)
    plan = Plan.read(workspace.plan)
    own = tmp_path / "own.segpipe"
    model_of(plan).write(own)
    segpipe.export_model(own, tmp_path / "nnunet")
    exported = next((tmp_path / "nnunet").iterdir())
    found = segpipe.compare([exported, own], dataset=folder, work=workspace.root, device="cpu", tta=False, jobs=1)
    assert found.differences[0].mean == pytest.approx(0, abs=0.02)
