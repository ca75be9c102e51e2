"""nnU-Net's own trainer for a number of iterations; run by the Python of an environment made by nnunet_env.sh, never by segpipe's.

time:  JSON line with the seconds an iteration takes, data loading and augmentation included.
train: trains and validates the fold's held-out cases as nnU-Net does; JSON line with the Dice of each label.

nnUNet_raw=... nnUNet_preprocessed=... nnUNet_results=... PYTHON tests/bench/nnunet_training.py train --iterations 250 --seed 0
"""

import argparse
import json
import os
import random
import time
from pathlib import Path

import numpy as np
import torch
from nnunetv2.training.nnUNetTrainer.nnUNetTrainer import nnUNetTrainer

EPOCHS = 10


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("what", choices=["time", "train"])
    parser.add_argument("--dataset", default="Dataset001_bench")
    parser.add_argument("--iterations", type=int, default=10)
    parser.add_argument("--fold", type=int, default=0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--learning-rate", type=float, default=0.01)
    parser.add_argument("--momentum", type=float, default=0.99)
    options = parser.parse_args()
    for seed in (random.seed, np.random.seed, torch.manual_seed):
        seed(options.seed)
    folder = Path(os.environ["nnUNet_preprocessed"]) / options.dataset  # noqa: SIM112 - nnU-Net's own name
    plans = json.loads((folder / "nnUNetPlans.json").read_text(encoding="utf-8"))
    declared = json.loads((folder / "dataset.json").read_text(encoding="utf-8"))
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    trainer = nnUNetTrainer(plans | {"continue_training": False}, "3d_fullres", options.fold, declared, device)
    print(json.dumps(timed(trainer, options) if options.what == "time" else trained(trainer, options)), flush=True)


def timed(trainer, options):
    trainer.on_train_start()
    trainer.network.train()
    seconds = []
    for _ in range(options.iterations + 3):
        start = time.perf_counter()
        float(trainer.train_step(next(trainer.dataloader_train))["loss"])
        seconds.append(time.perf_counter() - start)
    for loader in (trainer.dataloader_train, trainer.dataloader_val):
        getattr(loader, "_finish", lambda: None)()
    return {"seconds": seconds[3:], "parameters": sum(p.numel() for p in trainer.network.parameters())}


def trained(trainer, options):
    """The learning rate falls by epoch: as many epochs as make its steps small, with hardly any validation between."""
    trainer.num_epochs, trainer.num_iterations_per_epoch = EPOCHS, options.iterations // EPOCHS
    trainer.num_val_iterations_per_epoch = 2
    trainer.initial_lr = options.learning_rate
    trainer.on_train_start()
    for group in trainer.optimizer.param_groups:
        group["momentum"] = options.momentum
    trainer.on_train_start = lambda: None
    start = time.perf_counter()
    trainer.run_training()
    elapsed = time.perf_counter() - start
    trainer.perform_actual_validation()
    summary = json.loads((Path(trainer.output_folder) / "validation" / "summary.json").read_text(encoding="utf-8"))
    scores = {label: values["Dice"] for label, values in summary["mean"].items()}
    return {
        "seed": options.seed, "iterations": options.iterations, "training_s": round(elapsed),
        "dice": scores, "mean": sum(scores.values()) / len(scores),
    }  # fmt: skip


if __name__ == "__main__":
    main()
