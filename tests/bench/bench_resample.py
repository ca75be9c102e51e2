"""Resampling an image and a label map against scikit-image, as nnU-Net calls it, and scipy. One JSON line each; run on an idle machine.

python tests/bench/bench_resample.py
"""

import json
import time

import numpy as np
from scipy.ndimage import zoom
from skimage.transform import resize

from segpipe.preprocessing.resample import axis_matrix, blocks_of, resample_image, resample_labels

OLD = (200, 256, 256)
UP, DOWN = (250, 320, 320), (160, 205, 205)


def seconds(function, repeats):
    times = []
    for _ in range(repeats):
        axis_matrix.cache_clear()
        blocks_of.cache_clear()
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return sorted(times)[len(times) // 2]


def by_skimage(image, new):
    return resize(image.astype(np.float64), new, order=3, mode="edge", anti_aliasing=False)


def by_scipy(image, new):
    factors = [m / n for n, m in zip(image.shape, new, strict=True)]
    return zoom(image, factors, order=3, mode="nearest", grid_mode=True)


def labels_by_skimage(labels, new):
    shares = [
        resize((labels == v).astype(float), new, order=1, mode="edge", anti_aliasing=False) for v in np.unique(labels)
    ]
    return np.argmax(shares, axis=0)


def main():
    rng = np.random.default_rng(0)
    image = rng.normal(size=OLD).astype(np.float32)
    blocks = np.add.outer(np.add.outer(np.arange(200) // 67, np.arange(256) // 86), np.arange(256) // 86)
    labels = blocks.astype(np.int16)
    for new in (UP, DOWN):
        compare(image, labels, new)


def compare(image, labels, new):
    line = {"bench": f"resample image, cubic, {OLD} to {new}"}
    ours = resample_image(image[None], new, apart=None)[0]
    line["largest_difference"] = float(f"{np.abs(ours - by_skimage(image, new)).max() / np.ptp(image):.1e}")
    line["segpipe_s"] = seconds(lambda: resample_image(image[None], new, apart=None), 7)
    report(line, skimage=seconds(lambda: by_skimage(image, new), 3), scipy=seconds(lambda: by_scipy(image, new), 3))
    line = {"bench": f"resample 7 labels, linear, {OLD} to {new}"}
    line["segpipe_s"] = seconds(lambda: resample_labels(labels, new, apart=None), 7)
    report(line, skimage=seconds(lambda: labels_by_skimage(labels, new), 1))


def report(line, **theirs):
    ours = line["segpipe_s"]
    line["segpipe_s"] = round(ours, 3)
    for name, their in theirs.items():
        line |= {f"{name}_s": round(their, 3), f"ratio_{name}": round(their / ours, 1)}
    print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
