"""Pack into one folder what tests/bench/bench_gpu.py needs on a machine that has a GPU, torch and numpy, and nothing else.

    python tests/bench/pack_gpu.py FOLDER --hippocampus DATASET [--python 3.12] [--cases 22]

The folder holds two planned workspaces with prepared arrays (hippocampus, and drawn volumes with a plan of 128³ patches), a small model
with held-out scans and the masks that a processor predicts, and wheels for a version of Python. The wheels are those of the packages that
a rehearsal of the benchmark imports here. At most 58 MiB.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from importlib.metadata import requires
from pathlib import Path

import numpy as np

import segpipe
from segpipe.core.geometry import Grid
from segpipe.core.workspace import Workspace
from segpipe.execution.device import choose_runtime
from segpipe.inference.predictor import Predictor, PredictorOptions
from segpipe.io.formats import read_volume, write_volume
from segpipe.planning.schema import Plan

MOST_MIB = 58
CONFIGURATION = "3d_fullres"
_PLATFORMS = [f"manylinux_2_{n}_x86_64" for n in (39, 35, 34, 31, 28, 27, 24, 17, 12, 5)] + [
    f"manylinux{n}_x86_64" for n in (2014, 2010, 1)
]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--hippocampus", type=Path, required=True, help="the dataset (MSD Task04)")
    parser.add_argument("--python", default="3.12", help="of the machine with the GPU")
    parser.add_argument("--cases", type=int, default=22, help="of hippocampus; a fifth is held out")
    options = parser.parse_args()
    folder = options.folder
    folder.mkdir(parents=True)
    with tempfile.TemporaryDirectory() as scratch:
        subset = subset_of(options.hippocampus, Path(scratch) / "hippocampus", options.cases)
        pack_workspace(subset, folder / "hippocampus")
        pack_workspace(drawn(Path(scratch) / "large"), folder / "large")
        patch = Plan.read(Workspace(folder / "large").plan).configuration(CONFIGURATION).patch_size
        assert patch == (128, 128, 128), f"the drawn volumes were planned with patches of {patch}"
        pack_model(subset, folder, Path(scratch))
        rehearsal = Path(scratch) / "packages.json"
        bench = Path(__file__).with_name("bench_gpu.py")
        asked = [str(folder), "--device", "cpu", "--rehearse", "--packages", str(rehearsal)]
        paths = os.pathsep.join([str(bench.parents[2]), os.environ.get("PYTHONPATH", "")])
        subprocess.run([sys.executable, str(bench), *asked], check=True, env=os.environ | {"PYTHONPATH": paths})
        wheels(json.loads(rehearsal.read_text(encoding="utf-8")), folder / "wheels", options.python)
    size = sum(p.stat().st_size for p in folder.rglob("*") if p.is_file())
    print(json.dumps({"folder": str(folder), "mib": round(size / 2**20, 1), "python": options.python}))
    if size > MOST_MIB * 2**20:
        sys.exit(f"{folder}: {size / 2**20:.1f} MiB, and {MOST_MIB} are the most; give fewer --cases")


def subset_of(dataset, folder, n):
    """Copy the first cases of a dataset in nnU-Net's or the Decathlon's layout, as images/ and labels/."""
    declared = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    labels = (
        {name: int(value) for value, name in declared["labels"].items()}
        if "1" in declared["labels"]
        else declared["labels"]
    )
    for what in ("images", "labels"):
        (folder / what).mkdir(parents=True)
    for label in sorted((dataset / "labelsTr").glob("*.nii.gz"))[:n]:
        image = dataset / "imagesTr" / label.name
        image = image if image.is_file() else image.with_name(label.name.replace(".nii.gz", "_0000.nii.gz"))
        shutil.copy(image, folder / "images" / label.name)
        shutil.copy(label, folder / "labels" / label.name)
    (folder / "dataset.json").write_text(
        json.dumps({"name": "hippocampus", "channel_names": {"0": "MR"}, "labels": labels}), encoding="utf-8"
    )
    return folder


def drawn(folder, n=3, shape=(160, 160, 160)):
    """Boxes in boxes, without noise, so that they take little room; large enough for patches of 128³."""
    for number in range(n):
        labels = np.zeros(shape, dtype=np.uint8)
        for value, edge in enumerate((60, 40, 20), start=1):
            labels[tuple(slice(size // 2 - edge + 4 * number, size // 2 + edge) for size in shape)] = value
        grid = Grid.of_spacing(shape, (1.0, 1.0, 1.0))
        write_volume(folder / "images" / f"case_{number}.nii.gz", (100 + 50 * labels).astype(np.int16), grid)
        write_volume(folder / "labels" / f"case_{number}.nii.gz", labels, grid)
    names = {"background": 0, "shell": 1, "mantle": 2, "core": 3}
    (folder / "dataset.json").write_text(
        json.dumps({"name": "large", "channel_names": {"0": "MR"}, "labels": names}), encoding="utf-8"
    )
    return folder


def pack_workspace(dataset, packed):
    """Plan and prepare by the default recipe, and keep what training reads."""
    with tempfile.TemporaryDirectory() as scratch:
        work = Workspace(Path(scratch) / "work")
        segpipe.preprocess(dataset, work=work.root, configuration=CONFIGURATION)
        splits_are_made(work)
        packed.mkdir(parents=True)
        for file in (work.plan, work.splits, work.fingerprint):
            shutil.copy(file, packed / file.name)
        shutil.copytree(work.root / "preprocessed", packed / "preprocessed")


def splits_are_made(work):
    from segpipe.workflows.project import Project

    _ = Project(work.root, work).splits


def pack_model(dataset, folder, scratch):
    """Train a small model for a minute, and keep the held-out scans with what it predicts of them on a processor."""
    segpipe.plan(dataset, work=scratch / "small", recipe="cpu")
    done = segpipe.train(dataset, work=scratch / "small", minutes=1, device="cpu", tta=False)
    shutil.copy(done.model, folder / "model.segpipe")
    options = PredictorOptions(tta=False, engine="torch", precision="float32")
    predictor = Predictor.load(folder / "model.segpipe", choose_runtime("cpu"), options)
    from segpipe.dataset.splits import Splits

    held_out = Splits.read(Workspace(folder / "hippocampus").splits).fold(0).validation
    (folder / "scans").mkdir()
    for case in held_out:
        image = read_volume(dataset / "images" / f"{case}.nii.gz")
        labels = read_volume(dataset / "labels" / f"{case}.nii.gz")
        spacing = np.array(image.grid.spacing_mm)
        mask = predictor.predict(image.array[0].astype(np.float32), tuple(spacing.tolist()))
        np.savez_compressed(
            folder / "scans" / f"{case}.npz",
            image=image.array[0].astype(np.float32),
            labels=labels.array[0].astype(np.uint8),
            spacing_mm=spacing,
            mask_of_cpu=mask,
        )


def wheels(packages, folder, python):
    """Download the wheels of packages, but for torch, numpy and what torch itself needs."""
    there = {"segpipe", "pip", "setuptools"} | needed_by("torch") | needed_by("numpy")
    wanted = [f"{name}=={version}" for name, version in sorted(packages.items()) if normal(name) not in there]
    platforms = [word for name in _PLATFORMS for word in ("--platform", name)]
    asked = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python, *platforms]
    subprocess.run([sys.executable, "-m", "pip", "download", "-q", "-d", str(folder), *asked, *wanted], check=True)


def needed_by(package, seen=None):
    """A package and all that it requires."""
    seen = set() if seen is None else seen
    if normal(package) in seen:
        return seen
    seen.add(normal(package))
    try:
        lines = requires(package) or []
    except ImportError:
        return seen
    for line in lines:
        if "extra ==" not in line:
            needed_by(re.split(r"[\s;<>=!~\[(]", line, maxsplit=1)[0], seen)
    return seen


def normal(name):
    return re.sub(r"[-_.]+", "-", name).lower()


if __name__ == "__main__":
    main()
