"""Memory: what a case becomes, whether it fits, and what is free."""

import resource
from types import SimpleNamespace

import numpy as np
import pytest

from segpipe.core.volume import Volume
from segpipe.core.workspace import Workspace
from segpipe.dataset.room import require_room_to_read
from segpipe.dataset.run import check
from segpipe.errors import NoRoomError
from segpipe.execution import memory
from segpipe.inference.predictor import Predictor
from segpipe.io.formats import write_volume
from segpipe.preprocessing.prepare import prepare
from segpipe.preprocessing.room import prepare_where_it_fits, resampling_of, resampling_of_image
from tests.helpers.inference import small_plan, threshold_predictor
from tests.phantoms import axis_grid, write_small_dataset

SHAPE = (16, 20, 24)


@pytest.fixture
def free(monkeypatch):
    """A function that sets the free memory."""

    def set_to(n_bytes):
        monkeypatch.setattr("segpipe.preprocessing.room.free_bytes", lambda: n_bytes)

    return set_to


def resampling(spacing, shape=SHAPE):
    plan = small_plan()
    return resampling_of(shape, spacing, plan, plan.configuration("3d_fullres"))


def test_a_header_in_another_unit_is_named_before_the_array_is_made():
    found = resampling((80.0, 60.0, 40.0))
    assert found.to_shape == (640, 800, 960)
    with pytest.raises(
        NoRoomError, match=r"voxel size 80 x 60 x 40 mm, training 2 x 1.5 x 1 mm: 16x20x24 would become"
    ) as error:
        found.require_room(10**9)
    assert "640x800x960 voxels, 3.44 GB of 1 GB free; check the header's units" in str(error.value)
    found.require_room(4 * 10**9)


def test_a_size_beyond_all_machines_is_a_number_too():
    with pytest.raises(NoRoomError, match=r"GB of 0\.001 GB free"):
        resampling((2e6, 2e6, 2e6)).require_room(10**6)


def test_what_takes_long_is_said_and_what_is_usual_is_not():
    assert resampling((2.0, 1.5, 1.0)).remark() is None
    assert resampling((5.0, 1.5, 1.0)).remark() is None
    remark = resampling((20.0, 15.0, 10.0)).remark()
    assert "16x20x24 would become 160x200x240 voxels, 1,000 times as many, which takes long" in remark


def test_only_the_box_that_is_resampled_counts(free):
    """An image that is nearly all padding is not refused for its padding."""
    free(10**7)
    plan = small_plan()
    image = np.zeros((1, 64, 200, 200), dtype=np.float32)
    image[0, 30:34, 90:110, 90:110] = 1
    volume = Volume(image, axis_grid(image.shape[1:]))
    assert resampling_of_image(volume, plan, plan.configuration("3d_fullres")).shape == (4, 20, 20)
    prepare_where_it_fits(volume, None, plan, plan.configuration("3d_fullres"))


@pytest.mark.parametrize("configuration", ["3d_fullres", "2d"])
def test_what_is_forecast_is_what_is_made(configuration):
    plan = small_plan()
    volume = Volume(np.ones((1, *SHAPE), dtype=np.float32), axis_grid(SHAPE, (5.0, 3.0, 0.7)))
    forecast = resampling_of_image(volume, plan, plan.configuration(configuration))
    made = prepare(volume, None, plan, plan.configuration(configuration))
    assert made.image.shape[1:] == forecast.to_shape


def test_a_training_case_that_does_not_fit_is_not_prepared(free):
    plan = small_plan()
    volume = Volume(np.ones((1, *SHAPE), dtype=np.float32), axis_grid(SHAPE, (80.0, 60.0, 40.0)))
    free(10**8)
    with pytest.raises(NoRoomError, match="640x800x960"):
        prepare_where_it_fits(volume, None, plan, plan.configuration("3d_fullres"))


def test_prediction_from_an_array_does_not_exhaust_the_memory_either(free):
    predictor: Predictor = threshold_predictor(small_plan())
    free(10**8)
    with pytest.raises(NoRoomError, match="640x800x960"):
        predictor.predict(np.ones(SHAPE), (80.0, 60.0, 40.0))


def test_voxels_that_a_header_announces_must_fit(tmp_path):
    write_volume(tmp_path / "a.nii.gz", np.ones(SHAPE, dtype=np.uint8), axis_grid(SHAPE))
    require_room_to_read([tmp_path / "a.nii.gz"], 10**6)
    with pytest.raises(NoRoomError, match=r"a\.nii\.gz 16x20x24 voxels take 3.07e-05 GB of 3e-05 GB free"):
        require_room_to_read([tmp_path / "a.nii.gz"], 30_000)
    require_room_to_read([tmp_path / "gone.nii.gz"], 1)


def test_a_training_case_that_cannot_be_read_is_a_finding(tmp_path, monkeypatch):
    folder = write_small_dataset(tmp_path / "d", n_cases=2)
    monkeypatch.setattr("segpipe.dataset.room.free_bytes", lambda: 10_000)
    found = check(folder, Workspace(tmp_path / "w"), workers=1).findings
    assert {f.case for f in found if "take 3.07e-05 GB of 1e-05 GB free" in f.message} == {"case_0", "case_1"}


# What is free


def group(folder, **files):
    folder.mkdir(parents=True)
    for name, text in files.items():
        (folder / name.replace("_DOT_", ".")).write_text(text, encoding="utf-8")


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A function that says which groups this process is in; the machine itself has 100 GB free."""
    monkeypatch.setattr(memory, "_GROUPS", tmp_path)
    monkeypatch.setattr(memory, "_MEMBERSHIP", tmp_path / "cgroup")
    monkeypatch.setattr(memory.psutil, "virtual_memory", lambda: SimpleNamespace(available=10**11))
    return lambda text: (tmp_path / "cgroup").write_text(text, encoding="utf-8")


def test_the_limit_of_a_group_of_version_1_counts(machine, tmp_path):
    machine("9:name=systemd:/\n4:memory:/batch/job_7\n0::/\n")
    limit = {"memory_DOT_limit_in_bytes": "4000", "memory_DOT_usage_in_bytes": "3000"}
    group(tmp_path / "memory" / "batch" / "job_7", **limit, memory_DOT_stat="cache 9\ntotal_inactive_file 500\n")
    assert memory.free_bytes() == 1500


def test_the_limit_of_a_group_above_counts_too(machine, tmp_path):
    machine("0::/slice/own\n")
    group(
        tmp_path / "slice" / "own",
        memory_DOT_max="max\n",
        memory_DOT_current="10\n",
        memory_DOT_stat="inactive_file 0\n",
    )
    (tmp_path / "slice" / "memory.max").write_text("900\n", encoding="utf-8")
    (tmp_path / "slice" / "memory.current").write_text("300\n", encoding="utf-8")
    (tmp_path / "slice" / "memory.stat").write_text("inactive_file 50\n", encoding="utf-8")
    assert memory.free_bytes() == 650


def test_a_container_sees_its_own_group_as_the_root(machine, tmp_path):
    machine("0::/docker/not_visible_here\n")
    for name, text in (("memory.max", "700"), ("memory.current", "100"), ("memory.stat", "inactive_file 0")):
        (tmp_path / name).write_text(text, encoding="utf-8")
    assert memory.free_bytes() == 600


def limits(folder, version, most, used, given_back=None):
    """A group's files; without memory.stat where nothing is said of what is given back."""
    folder.mkdir(parents=True, exist_ok=True)
    names = {1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")}
    limit, usage, cached = names.get(version, ("memory.max", "memory.current", "inactive_file"))
    (folder / limit).write_text(f"{most}\n", encoding="utf-8")
    (folder / usage).write_text(f"{used}\n", encoding="utf-8")
    if given_back is not None:
        (folder / "memory.stat").write_text(f"{cached} {given_back}\n", encoding="utf-8")


@pytest.mark.parametrize(
    ("member_of", "groups", "free"),
    [
        # The least of all groups above counts, in either version, wherever it stands.
        ("0::/a/b/c\n", {"a/b/c": (2, 5000, 0), "a/b": (2, 900, 300, 50), "a": (2, "max", 10)}, 650),
        ("0::/a/b/c\n", {"a/b/c": (2, 500, 0), "a/b": (2, 900, 300), "a": (2, "max", 10)}, 500),
        ("4:memory:/a/b\n", {"memory/a/b": (1, 2**63 - 4096, 7), "memory/a": (1, 4000, 3000, 500)}, 1500),
        ("4:memory:/a/b\n", {"memory/a/b": (1, 2**63 - 4096, 7), "memory": (1, 800, 300)}, 500),
        # Memory beside other kinds in one line of version 1.
        ("4:cpu,memory,pids:/a\n", {"memory/a": (1, 700, 100)}, 600),
        # Both versions beside each other: memory belongs to version 1, the other one is mounted elsewhere.
        ("4:memory:/a\n0::/b\n", {"memory/a": (1, 700, 100), "unified/b": (2, 1, 0)}, 600),
        # Without memory.stat nothing is known to be given back, and the limit counts.
        ("0::/a\n", {"a": (2, 700, 100)}, 600),
        # More is used than the limit allows: nothing is free, and not less.
        ("0::/a\n", {"a": (2, 700, 900)}, 0),
        ("0::/a\n", {"a": (2, "max", 900, 5)}, 10**11),
        ("0::/gone\n", {}, 10**11),
        ("4:cpu:/a\n", {"memory/a": (1, 700, 100)}, 10**11),
        ("0::/../outside\n", {".": (2, 900, 100)}, 800),
    ],
)
def test_the_least_of_all_groups_above_the_process_is_free(machine, tmp_path, monkeypatch, member_of, groups, free):
    monkeypatch.setattr(memory, "_left_of_process", lambda: iter(()))
    machine(member_of)
    for place, how in groups.items():
        limits(tmp_path / place, *how)
    assert memory.free_bytes() == free


def test_where_the_system_says_nothing_of_groups_its_root_counts(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_left_of_process", lambda: iter(()))
    limits(tmp_path, 2, 900, 100)
    assert memory.free_bytes() == 800


def test_a_line_that_is_cut_off_is_passed_over(machine, tmp_path, monkeypatch):
    monkeypatch.setattr(memory, "_left_of_process", lambda: iter(()))
    machine("nonsense\n0::/a\n")
    limits(tmp_path / "a", 2, 900, 100)
    assert memory.free_bytes() == 800


def test_without_groups_the_machine_and_the_shells_limits_count(machine, monkeypatch):
    machine("")
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert memory.free_bytes() == 10**11
    held = memory.psutil.Process().memory_info().vms
    monkeypatch.setattr(
        resource, "getrlimit", lambda kind: (held + 10**9 if kind == resource.RLIMIT_AS else resource.RLIM_INFINITY, 0)
    )
    assert 0 < memory.free_bytes() < 1.1e9
