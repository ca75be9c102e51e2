"""A model file of a stranger: whatever stands in it, it is read, or refused in one line that names the file."""

import json
import random
import zipfile

import numpy as np
import pytest
import torch
from safetensors.torch import load, save

from segpipe.core.system_names import below
from segpipe.core.volume import Volume
from segpipe.core.workspace import Workspace
from segpipe.crossvalidation.folder import CrossvalFolder
from segpipe.dataset.schema import Case
from segpipe.errors import ModelError, SegpipeError
from segpipe.execution.device import choose_runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.models.file import ModelFile
from segpipe.models.nnunet.folder import write_model_folder
from segpipe.planning.schema import Plan
from segpipe.training.initial import InitialWeights
from tests.helpers.batch import SHAPE, drawn
from tests.helpers.inference import small_plan
from tests.helpers.nnunet_models import model_of
from tests.phantoms import axis_grid

NONSENSE = (
    None, -1, 0, 3, 0.5, 1e308, float("nan"), float("inf"), 2**70, True, "", "NaN", "../x", "x" * 10**6, [], [1, 2, 3], {},
)  # fmt: skip
OUTSIDE = ("../../ESCAPED", "/ESCAPED", "a/b", "..", ".", "", "a\\b", "a\0b", "-rf", ".hidden", "x" * 300, "ü" * 101)
IMAGE = Volume(drawn()[None].astype(np.float32), axis_grid(SHAPE))


@pytest.fixture
def members(tmp_path):
    model_of(small_plan(), folds=("0",)).write(tmp_path / "sound.segpipe")
    with zipfile.ZipFile(tmp_path / "sound.segpipe") as archive:
        return {name: archive.read(name) for name in archive.namelist()}


def packed(path, members):
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content if isinstance(content, bytes) else json.dumps(content))
    return path


def with_value(members, member, path, value):
    """The members with one value of a JSON member replaced."""
    held = json.loads(members[member])
    *above, last = path
    at = held
    for key in above:
        at = at[key]
    at[last] = value
    return {**members, member: held}


def without_value(members, member, path):
    held = json.loads(members[member])
    at = held
    for key in path[:-1]:
        at = at[key]
    del at[path[-1]]
    return {**members, member: held}


def predicted(path):
    predictor = Predictor.load((path,), choose_runtime("cpu"), PredictorOptions(engine="torch", tta=True))
    return predictor.segment(IMAGE)


def places(value, path=()):
    if path:
        yield path
    for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield from places(value[key], (*path, key))


@pytest.mark.parametrize("seed", range(6))
def test_nonsense_is_refused_in_a_line_or_changes_nothing_that_matters(tmp_path, members, seed):
    every = [(m, p) for m in ("model.json", "plan.json") for p in places(json.loads(members[m]))]
    rng, said = random.Random(seed), []
    for number in range(50):
        member, path = rng.choice(every)
        value = rng.choice(NONSENSE)
        changed = without_value(members, member, path) if number % 10 == 0 else with_value(members, member, path, value)
        file = packed(tmp_path / "strange.segpipe", changed)
        try:
            predicted(file)
        except SegpipeError as error:
            said.append(str(error))
        except Exception as error:  # noqa: BLE001 - it is this that must not be
            pytest.fail(f"{member} {path} = {str(value)[:40]}: {type(error).__name__}: {error}")
    assert [line for line in said if "strange.segpipe" not in line or len(line) > 700 or "\n" in line] == []
    assert len(said) > 25


def weights_with(members, change):
    weights = load(members["fold_0.safetensors"])
    name = next(name for name, value in weights.items() if value.ndim > 2)
    return {**members, "fold_0.safetensors": save(change(weights, name))}


WEIGHTS = {
    "missing": lambda w, n: {k: v for k, v in w.items() if k != n},
    "of another shape": lambda w, n: {**w, n: w[n][:1]},
    "none": lambda w, n: {},
}


@pytest.mark.parametrize("change", WEIGHTS.values(), ids=WEIGHTS)
def test_weights_that_no_training_made_are_refused(tmp_path, members, change):
    with pytest.raises(ModelError, match=r"strange\.segpipe: the weights"):
        predicted(packed(tmp_path / "strange.segpipe", weights_with(members, change)))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_give_no_mask(tmp_path, members, value):
    spoilt = weights_with(members, lambda w, n: {k: torch.full_like(v, value) for k, v in w.items()})
    with pytest.raises(SegpipeError, match="not finite"):
        predicted(packed(tmp_path / "strange.segpipe", spoilt))


@pytest.mark.parametrize("kind", [torch.float64, torch.float16, torch.int32])
def test_weights_of_another_type_are_taken_as_the_networks(tmp_path, members, kind):
    file = packed(tmp_path / "odd.segpipe", weights_with(members, lambda w, n: {k: v.to(kind) for k, v in w.items()}))
    assert predicted(file).labels.shape == SHAPE


@pytest.mark.parametrize("member", ["model.json", "plan.json", "fold_0.safetensors"])
def test_a_member_that_is_missing_cut_or_no_json_is_named_with_the_file(tmp_path, members, member):
    for content in (None, members[member][:40], b"\xff\xfe", b"[" * 10**5):
        kept = {name: value for name, value in members.items() if name != member}
        file = packed(tmp_path / "strange.segpipe", kept if content is None else {**kept, member: content})
        with pytest.raises(SegpipeError, match=r"strange\.segpipe"):
            predicted(file)
    (tmp_path / "folder.segpipe").mkdir()
    with pytest.raises(SegpipeError, match=r"folder\.segpipe"):
        predicted(tmp_path / "folder.segpipe")


def renamed(members, **told):
    """A model whose configuration, fold, variant, recipe or planner preset is called something else."""
    about, plan = json.loads(members["model.json"]), json.loads(members["plan.json"])
    own = about["configuration"]
    name = told.get("configuration", own)
    plan["configurations"] = {name: {**plan["configurations"][own], "name": name}}
    plan |= {key: told[key] for key in ("recipe", "planner_preset") if key in told}
    about |= {"configuration": name, "folds": [told.get("fold", "0")], "variant": told.get("variant", about["variant"])}
    weights = {f"fold_{about['folds'][0]}.safetensors": members["fold_0.safetensors"]}
    return {"model.json": about, "plan.json": plan, **weights}


@pytest.mark.parametrize("what", ["configuration", "fold", "variant", "recipe", "planner_preset"])
@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_a_name_in_a_model_is_no_path(tmp_path, members, what, name):
    if (what, name) == ("planner_preset", ""):
        return  # an imported model has none
    file = packed(tmp_path / "strange.segpipe", renamed(members, **{what: name}))
    for read in (ModelFile.read, InitialWeights.of):
        with pytest.raises(ModelError, match=r"strange\.segpipe.*is no name of a file or folder"):
            read(file)


def test_names_that_segpipe_gives_itself_are_taken(tmp_path, members):
    for told in ({"variant": "cpu+planned_width=0.25~student-2"}, {"recipe": "cpu+u2net_norm=batch"}, {"fold": "all"}):
        assert ModelFile.read(packed(tmp_path / "own.segpipe", renamed(members, **told)))


@pytest.mark.parametrize("name", OUTSIDE, ids=range(len(OUTSIDE)))
def test_no_path_of_a_workspace_leads_out_of_it(tmp_path, name):
    """Also where nobody checked a name when it was read."""
    if name in ("-rf", ".hidden"):
        return  # they stay inside
    place = Workspace(tmp_path)
    for make in (
        lambda: place.case(name), lambda: place.preprocessed(name), lambda: place.prepared_index(f"{name}/../../x"),
        lambda: place.first_stage("c", name), lambda: place.soft_labels("c", name), lambda: place.unlabelled(name, "k"),
        lambda: place.place("c", name, 0), lambda: place.variant("c", name), lambda: place.fold("c", "v", f"0/../../{name}"),
        lambda: place.model("c", name), lambda: CrossvalFolder(place).study(name), lambda: below(tmp_path, "a", name),
    ):  # fmt: skip
        with pytest.raises(SegpipeError, match="is no name of a file or folder"):
            make()


def test_an_export_checks_again_where_it_writes(tmp_path):
    model = model_of(small_plan(), folds=("0",))
    object.__setattr__(model, "folds", {"0/../../../ESCAPED": model.folds["0"]})
    with pytest.raises(SegpipeError, match="is no name of a file or folder"):
        write_model_folder(model, tmp_path / "a" / "b" / "out")
    assert [f for f in tmp_path.rglob("*") if f.is_file()] == []


def test_a_case_is_no_path_either():
    for name in ("../x", "a/b", "..", "", "a\nb", "x" * 300):
        with pytest.raises(ValueError, match="is no name of a file or folder"):
            Case(id=name, images=(), label=None)
    assert Case(id="Müller, J. (2) $1 100%", images=(), label=None)


PLANS = {
    "patch_size": [[], [8, 8], [-8, 8, 8], [0, 8, 8], [8, 8, 10**9]],
    "spacing_mm": [[], [0.0, 1.0, 1.0], [float("inf"), 1.0, 1.0], [1.0, 1.0]],
    "median_shape": [[1.0, 2.0], [0, 1, 1]],
    "batch_size": [0, -1],
    "normalisation": [[], ["zscore", "zscore"], ["nonsense"]],
    "use_mask_for_norm": [[], [True, False]],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in PLANS.items() for v in values])
def test_a_configuration_means_something(field, value):
    plan = json.loads(small_plan().to_json())
    name = "3d_fullres"
    plan["configurations"][name][field] = value
    with pytest.raises(SegpipeError, match=field):
        Plan.from_json(json.dumps(plan), advice="make it again")


def test_a_ct_without_its_intensities_cannot_be_normalised(tmp_path, members):
    changed = with_value(members, "plan.json", ("intensities",), [])
    changed = with_value(
        {**changed, "plan.json": json.dumps(changed["plan.json"])},
        "plan.json",
        ("configurations", "3d_fullres", "normalisation"),
        ["ct"],
    )
    with pytest.raises(
        ModelError, match=r"strange\.segpipe: its plan: configuration 3d_fullres: normalisation ct needs intensities"
    ):
        predicted(packed(tmp_path / "strange.segpipe", changed))


NETWORKS = {
    "strides": [[], [[0, 0, 0]] * 3, [[2, 2, 2]] * 3, [[1, 1]] * 3, [[1, 1, 1]] * 2],
    "features": [[10**9] * 3, [60_000] * 3, [0, 1, 2], [8]],
    "kernel_sizes": [[[3, 3]] * 3, [[0, 3, 3]] * 3],
    "options": [{"norm": "layer"}, {"norm": []}],
}


@pytest.mark.parametrize(("field", "value"), [(f, v) for f, values in NETWORKS.items() for v in values])
def test_a_network_means_something(field, value):
    plan = json.loads(small_plan().to_json())
    name = "3d_fullres"
    plan["configurations"][name]["network"][field] = value
    with pytest.raises(SegpipeError, match=r"configurations\..*network"):
        Plan.from_json(json.dumps(plan), advice="make it again")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"transpose_forward": [0, 0, 0]}, "do not undo each other"),
        ({"transpose_forward": [1, 2, 0], "transpose_backward": [1, 2, 0]}, "do not undo each other"),
        ({"mirror_axes": [0, 0]}, "twice"),
        ({"mirror_axes": [3]}, "mirror_axes"),
        ({"channel_names": []}, "channel_names"),
        ({"channel_names": ["a", "b"]}, "expected 2"),
        ({"configurations": {}}, "configurations"),
    ],
)
def test_a_plan_means_something(changes, words):
    with pytest.raises(SegpipeError, match=words):
        Plan.from_json(json.dumps(json.loads(small_plan().to_json()) | changes), advice="make it again")


@pytest.mark.parametrize("value", [-1, 2**32, 2**63, 2**70])
def test_a_label_fits_the_type_that_masks_are_written_in(value):
    plan = json.loads(small_plan().to_json())
    plan["labels"]["targets"][0] |= {"values": [value], "paint": value}
    with pytest.raises(SegpipeError, match=r"labels\.targets"):
        Plan.from_json(json.dumps(plan), advice="make it again")
