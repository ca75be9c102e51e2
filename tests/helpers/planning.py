"""Fingerprints to plan with."""


def mapping(**changes):
    base = {
        "num_training": 20, "channel_names": ["T1"], "num_labels_with_background": 3, "spacings": [[1.0, 1.0, 1.0]] * 3,
        "shapes_after_crop": [[40, 48, 56]] * 3, "median_relative_size_after_cropping": 1.0,
    }  # fmt: skip
    return base | changes


RECIPES = [
    "default",
    "resenc_m",
    "resenc_l",
    "resenc_xl",
    "residual_m",
    "residual_l",
    "residual_xl",
    "mr_artefacts",
    "cpu",
    "u2net",
    "danet",
]
