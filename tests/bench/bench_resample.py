"""Resampling an image and a label map against scikit-image, as nnU-Net calls it. One JSON line each; run on an idle machine.

python tests/bench/bench_resample.py
"""

import json
import time

import numpy as np
from skimage.transform import resize

from segpipe.preprocessing.resample import interpolation_matrix, resample_image, resample_labels

OLD, NEW = (80, 160, 160), (100, 200, 200)


def seconds(function, repeats=3):
    times = []
    for _ in range(repeats):
        interpolation_matrix.cache_clear()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def by_labels(labels):
    shares = [
        resize((labels == v).astype(float), NEW, order=1, mode="edge", anti_aliasing=False) for v in np.unique(labels)
    ]
    return np.argmax(shares, axis=0)


def main():
    rng = np.random.default_rng(0)
    image = rng.normal(size=OLD).astype(np.float32)
    labels = (np.add.outer(np.add.outer(np.arange(80) // 27, np.arange(160) // 54), np.arange(160) // 54)).astype(
        np.int16
    )
    trials = {
        "image, cubic": (
            lambda: resample_image(image[None], NEW, apart=None),
            lambda: resize(image.astype(np.float64), NEW, order=3, mode="edge", anti_aliasing=False),
        ),
        "7 labels, linear": (lambda: resample_labels(labels, NEW, apart=None), lambda: by_labels(labels)),
    }
    for name, (ours, theirs) in trials.items():
        a, b = seconds(ours), seconds(theirs)
        print(
            json.dumps(
                {
                    "bench": f"resample {name} {OLD} to {NEW}",
                    "segpipe_s": round(a, 3),
                    "skimage_s": round(b, 3),
                    "ratio": round(b / a, 1),
                }
            )
        )


if __name__ == "__main__":
    main()
