"""False alarms and finds of the intensity guard on real datasets. One JSON line each; nothing is timed.

Each case is held against the others: as it is (an alarm is a false one), shifted by 1024, and stretched to 0..255.

python tests/bench/bench_guard.py [--data FOLDER] [DATASET ...]
"""

import argparse
import json
from pathlib import Path

import numpy as np

from segpipe.dataset.fingerprint.measure import image_percentiles
from segpipe.dataset.fingerprint.schema import CaseFingerprint
from segpipe.dataset.load import load_image
from segpipe.dataset.match import match_dataset
from segpipe.planning.guard import doubts, make_guard

DATASETS = ["hippocampus", "cardiac_cine", "fetal_brain", "em_membrane"]


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("datasets", nargs="*", default=DATASETS)
    parser.add_argument("--data", type=Path, default=Path(__file__).parents[3] / "shared" / "data")
    options = parser.parse_args()
    for name in options.datasets:
        print(json.dumps({"bench": f"intensity guard, {name}"} | count(options.data / name)), flush=True)


def count(folder):
    dataset = match_dataset(folder)
    names = dataset.channel_names
    seen = [percentiles_of(case, names) for case in dataset.cases]
    found = {"cases": len(seen), "false_alarms": 0, "shift_told": 0, "eight_bit_told": 0}
    for left_out, versions in enumerate(seen):
        guard = make_guard(tuple(fingerprint_of(v[0]) for i, v in enumerate(seen) if i != left_out))
        for kind, percentiles in zip(("false_alarms", "shift_told", "eight_bit_told"), versions, strict=True):
            found[kind] += bool(doubts(percentiles, guard, names))
    return found


def percentiles_of(case, names):
    """Of an image as it is, shifted, and stretched."""
    image = load_image(case.id, [i.path for i in case.images], names).volume.array.astype(np.float32)
    low, high = image.min(), np.percentile(image, 99.9)
    stretched = np.round((image - low) / (high - low) * 255).clip(0, 255)
    return [image_percentiles(version) for version in (image, image + 1024, stretched)]


def fingerprint_of(percentiles):
    one = (1, 1, 1)
    return CaseFingerprint(case="", shape=one, spacing_mm=one, shape_after_crop=one, percentiles=percentiles)


if __name__ == "__main__":
    main()
