"""What nnU-Net calls things, and which of them segpipe computes in the same way. No torch."""

import re

SCHEMES = {
    "ct": "CTNormalization",
    "zscore": "ZScoreNormalization",
    "none": "NoNormalization",
    "rescale_0_1": "RescaleTo01Normalization",
    "rgb_0_1": "RGBTo01Normalization",
}
CLASSES = {
    "plain_unet": "dynamic_network_architectures.architectures.unet.PlainConvUNet",
    "resenc_unet": "dynamic_network_architectures.architectures.unet.ResidualEncoderUNet",
}
PLANS_NAMES = {
    "ExperimentPlanner": "nnUNetPlans",
    "nnUNetPlannerResEncM": "nnUNetResEncUNetMPlans",
    "nnUNetPlannerResEncL": "nnUNetResEncUNetLPlans",
    "nnUNetPlannerResEncXL": "nnUNetResEncUNetXLPlans",
}
ORIENTATIONS = {
    "SimpleITKIO": "as_stored",
    "NibabelIO": "as_stored",
    "NibabelIOWithReorient": "canonical",
    "NaturalImage2DIO": "as_stored",
    "Tiff3DIO": "as_stored",
}
"""Readers, and how segpipe orients what they read."""
NORMS = {"instance": "instancenorm.InstanceNorm", "batch": "batchnorm.BatchNorm"}
BLOCKS_KEYS = {"plain_unet": "n_conv_per_stage", "resenc_unet": "n_blocks_per_stage"}
RESAMPLER = "resample_data_or_seg_to_shape"
RESAMPLING = {
    name: {"is_seg": name == "seg", "order": 3 if name == "data" else 1, "order_z": 0, "force_separate_z": None}
    for name in ("data", "seg", "probabilities")
}
"""How segpipe resamples images, segmentations and probabilities, in nnU-Net's words."""

BATCH_NORM_TRAINER = "nnUNetTrainerBN"
# Parts of the names of nnU-Net's own trainers that change loss, learning rate, augmentation, sampling or duration: what a trained
# network computes follows from the plans all the same. Mirroring is in the checkpoint.
_HARMLESS = (
    r"_\d+epochs?", r"_\d+ep", r"_?NoMirroring", r"_?onlyMirror01", r"(Vanilla)?Adam", "Adan", r"\d+en\d+", "CosAnneal", r"_?DA5",
    r"_?DASegOrd0", r"_?[Ss]eg[Oo]rd0", "ord0", "NoDA", r"_?noDummy2DDA", "CELoss", "DiceCELoss_noSmooth", "DiceLoss", "DiceTopK10Loss",
    "Topk10Loss", "LS01", "NoDeepSupervision", r"_probabilisticOversampling(_\d+)?", "_warmup", "Benchmark", "_noDataLoading",
)  # fmt: skip
_AS_PLANNED = re.compile(f"nnUNetTrainer({'|'.join(_HARMLESS)})*")


def trains_as_planned(trainer: str) -> bool:
    """Whether a trainer is one of nnU-Net's own that build the network of the plans (or the same with batch normalisation)."""
    return trainer == BATCH_NORM_TRAINER or _AS_PLANNED.fullmatch(trainer) is not None
