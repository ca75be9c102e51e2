"""Train networks with the same minutes through the command line, and hold each against the plain U-Net of the same run.

    python tests/bench/bench_networks.py DATASET --minutes 4 --together 2 [--configuration C] [--network NAME ...]

One JSON line a network: Dice of the held-out cases, parameters, seconds a step (validation included), peak memory of the process.
``--together`` trains that many at the same time, each with its share of the processors' cores.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from segpipe.networks.build import build_network
from segpipe.networks.measure import n_parameters
from segpipe.networks.spec import NetworkSpec

NETWORKS = ("plain_unet", "resenc_unet", "u2net", "u2netp", "danet", "monai:SegResNet", "monai:SwinUNETR")
_FORK = threading.Lock()


def main() -> None:
    options = arguments()
    work = options.work or Path(tempfile.mkdtemp())
    threads = max((os.cpu_count() or 1) // options.together, 1)
    where = [str(options.dataset), "--work", str(work), "--quiet"]
    if options.recipe:
        run(["plan", *where, "--recipe", options.recipe], threads)
    run(["preprocess", *where, *(["-c", options.configuration] if options.configuration else [])], threads)

    def train(name: str) -> dict:
        command = ["train", *where, "--network", name, "--minutes", str(options.minutes), "--no-tta", "--json"]
        try:
            done, peak_gb = run(command + (["-c", options.configuration] if options.configuration else []), threads)
        except RuntimeError as error:
            return {
                "benchmark": "networks",
                "dataset": options.dataset.name,
                "network": name,
                "failed": str(error),
                "dice": 0.0,
            }
        return line_of(name, json.loads(done), peak_gb, work, threads, options)

    with ThreadPoolExecutor(options.together) as pool:
        lines = list(pool.map(train, options.network or NETWORKS))
    peer = next((line["dice"] for line in lines if line["network"] == "plain_unet"), None)
    for line in lines:
        print(json.dumps(line | {"dice_against_plain_unet": peer and round(line["dice"] / peer, 4)}))


def run(command: list[str], threads: int) -> tuple[str, float]:
    """Output of a segpipe command, and the most memory that its process held, in GB."""
    with tempfile.TemporaryFile("w+", encoding="utf-8") as output:
        with _FORK:
            process = subprocess.Popen(
                [sys.executable, "-c", "from segpipe.cli.app import main; main()", *command],
                stdout=output,
                env=os.environ | {"OMP_NUM_THREADS": str(threads)},
            )
        _, status, usage = os.wait4(process.pid, 0)
        if status:
            raise RuntimeError(f"segpipe {' '.join(command)}: exit status {os.waitstatus_to_exitcode(status)}")
        output.seek(0)
        return output.read(), usage.ru_maxrss * 1024 / 1e9


def line_of(name: str, done: dict, peak_gb: float, work: Path, threads: int, options: argparse.Namespace) -> dict:
    record = done["training"]
    plan = json.loads((work / "plans" / f"{record['variant']}.json").read_text(encoding="utf-8"))
    planned = plan["configurations"][record["configuration"]]
    labels = done["evaluation"]["by_label"]
    channels = len(json.loads((work / "plan.json").read_text(encoding="utf-8"))["channel_names"])
    network = build_network(NetworkSpec.model_validate(planned["network"]), channels, len(labels) + 1)
    return {
        "benchmark": "networks",
        "dataset": options.dataset.name,
        "configuration": record["configuration"],
        "network": name,
        "options": planned["network"]["options"],
        "patch": planned["patch_size"],
        "batch": planned["batch_size"],
        "minutes": options.minutes,
        "threads": threads,
        "iterations": record["iterations"],
        "step_s": round(record["elapsed_s"] / record["iterations"], 3),
        "million_parameters": round(n_parameters(network) / 1e6, 2),
        "planned_gb": round(planned["estimated_memory_gb"], 2),
        "peak_gb": round(peak_gb, 2),
        "dice": round(done["evaluation"]["mean_dice"], 4),
        "label_dice": {name: s["mean_dice"] for name, s in labels.items()},
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", type=Path)
    parser.add_argument("--minutes", type=float, default=4.0)
    parser.add_argument("--together", type=int, default=1)
    parser.add_argument("--configuration")
    parser.add_argument("--recipe")
    parser.add_argument("--network", action="append")
    parser.add_argument("--work", type=Path)
    return parser.parse_args()


if __name__ == "__main__":
    main()
