"""Make tests/golden/nnunet_phantoms: nnU-Net plans for data/phantoms, trains a small network on them, and predicts them.

It runs in an environment that has nnU-Net (nnunetv2 2.8.1 on torch 2.13.0 were used) and needs no segpipe:

    python tests/golden/make_nnunet_phantoms.py [FOLDER]

FOLDER is where the files are written; tests/golden/nnunet_phantoms unless given. What an earlier run wrote there is replaced.
It takes three to five minutes on two cores.
"""

import json
import os
import shutil
import sys
import tempfile
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PHANTOMS = ROOT / "data" / "phantoms"
DATASET = "Dataset001_phantoms"
PLANNERS = ("ExperimentPlanner", "nnUNetPlannerResEncM", "nnUNetPlannerResEncL", "nnUNetPlannerResEncXL")
CONFIGURATION = "3d_small"
FEATURES = [4, 8, 16, 16]
# Smaller than the images, so that several windows are merged.
PATCH = [16, 32, 32]
EPOCHS, ITERATIONS = 30, 50
# What nnU-Net needs to predict.
KEPT = ("network_weights", "trainer_name", "inference_allowed_mirroring_axes")


def main(target: Path, work: Path) -> None:
    """Plan, train and predict in ``work``; write what is kept into ``target``."""
    raw, preprocessed = work / "raw" / DATASET, work / "preprocessed" / DATASET
    for old in ("plans", "model", "predicted", "predicted_mirrored"):
        shutil.rmtree(target / old, ignore_errors=True)
    write_raw(raw)
    plan(target, preprocessed)
    model = target / "model" / f"nnUNetTrainer__nnUNetPlans__{CONFIGURATION}"
    train(model, preprocessed)
    for folder, mirroring in (("predicted", False), ("predicted_mirrored", True)):
        predict(model, raw / "imagesTr", target / folder, mirroring=mirroring)
    versions = {name: version(name) for name in ("nnunetv2", "torch", "SimpleITK", "numpy")}
    write_json(target / "about.json", {"made_by": "tests/golden/make_nnunet_phantoms.py", "versions": versions})


def write_raw(raw: Path) -> None:
    """Write the phantoms in nnU-Net's layout: NIfTI only, numbered channels."""
    import SimpleITK as sitk

    for theirs, ours, suffix in (("imagesTr", "images", "_0000"), ("labelsTr", "labels", "")):
        (raw / theirs).mkdir(parents=True)
        for file in sorted((PHANTOMS / ours).iterdir()):
            case = file.name.partition(".")[0]
            sitk.WriteImage(sitk.ReadImage(str(file)), str(raw / theirs / f"{case}{suffix}.nii.gz"))
    declared = json.loads((PHANTOMS / "dataset.json").read_text(encoding="utf-8"))
    n_cases = len(list((raw / "labelsTr").iterdir()))
    dataset = {key: declared[key] for key in ("channel_names", "labels")}
    write_json(raw / "dataset.json", {**dataset, "numTraining": n_cases, "file_ending": ".nii.gz"})


def plan(target: Path, preprocessed: Path) -> None:
    """Let nnU-Net measure and plan; keep its fingerprint and the plans of every planner."""
    from nnunetv2.experiment_planning.plan_and_preprocess_api import extract_fingerprints, plan_experiments

    extract_fingerprints([1], num_processes=1)
    target.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(preprocessed / "dataset_fingerprint.json", target / "dataset_fingerprint.json")
    (target / "plans").mkdir()
    for planner in PLANNERS:
        name = plan_experiments([1], experiment_planner_class_name=planner)
        shutil.copyfile(preprocessed / f"{name}.json", target / "plans" / f"{planner}.json")


def train(model: Path, preprocessed: Path) -> None:
    """Train the planned network with few features on small patches; keep what prediction needs."""
    import torch
    from nnunetv2.experiment_planning.plan_and_preprocess_api import preprocess
    from nnunetv2.run.run_training import get_trainer_from_args

    plans = json.loads((preprocessed / "nnUNetPlans.json").read_text(encoding="utf-8"))
    full = plans["configurations"]["3d_fullres"]
    network = json.loads(json.dumps(full["architecture"]))
    network["arch_kwargs"]["features_per_stage"] = FEATURES
    plans["configurations"][CONFIGURATION] = {
        "inherits_from": "3d_fullres",
        "patch_size": PATCH,
        "architecture": network,
    }
    write_json(preprocessed / "nnUNetPlans.json", plans)
    preprocess([1], configurations=("3d_fullres",), num_processes=(1,))
    torch.manual_seed(0)
    trainer = get_trainer_from_args("1", CONFIGURATION, 0, device=torch.device("cpu"))
    trainer.num_epochs, trainer.num_iterations_per_epoch, trainer.num_val_iterations_per_epoch = EPOCHS, ITERATIONS, 5
    trainer.run_training()
    trained = Path(trainer.output_folder)
    (model / "fold_0").mkdir(parents=True)
    for name in ("plans.json", "dataset.json"):
        write_json(model / name, json.loads((trained.parent / name).read_text(encoding="utf-8")))
    held = torch.load(trained / "checkpoint_final.pth", map_location="cpu", weights_only=False)
    reduced = {key: held[key] for key in KEPT} | {"init_args": {"configuration": CONFIGURATION}}
    torch.save(reduced, model / "fold_0" / "checkpoint_final.pth")


def predict(model: Path, images: Path, target: Path, *, mirroring: bool) -> None:
    """Predict every phantom with the weights that are kept."""
    import torch
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    device = torch.device("cpu")
    predictor = nnUNetPredictor(
        use_mirroring=mirroring, perform_everything_on_device=False, device=device, allow_tqdm=False
    )
    predictor.initialize_from_trained_model_folder(str(model), use_folds=(0,))
    target.mkdir()
    predictor.predict_from_files_sequential(str(images), str(target))
    for extra in target.glob("*.json"):
        extra.unlink()


def write_json(path: Path, content: dict) -> None:
    """Write JSON on one line: the folder is small."""
    path.write_text(json.dumps(content) + "\n", encoding="utf-8")


if __name__ == "__main__":
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "nnunet_phantoms"
    with tempfile.TemporaryDirectory() as temporary:
        for name in ("raw", "preprocessed", "results"):
            os.environ[f"nnUNet_{name}"] = str(Path(temporary) / name)
            (Path(temporary) / name).mkdir()
        os.environ |= {"nnUNet_n_proc_DA": "1", "nnUNet_compile": "f"}
        main(folder, Path(temporary))
