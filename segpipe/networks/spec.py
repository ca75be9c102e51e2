"""What a network is, as data. No torch."""

from typing import Literal

from segpipe.artefact import Record

Architecture = Literal["plain_unet", "resenc_unet"]


class NetworkSpec(Record):
    """A planned U-Net. Tuples run from the highest resolution to the bottleneck; kernels and strides are (z, y, x) or (y, x)."""

    architecture: Architecture
    features: tuple[int, ...]
    kernel_sizes: tuple[tuple[int, ...], ...]
    strides: tuple[tuple[int, ...], ...]
    encoder_blocks: tuple[int, ...]
    """Convolutions (plain) or residual blocks (resenc) of each encoder stage."""
    decoder_convs: tuple[int, ...]
    """Convolutions of each decoder stage, highest resolution last as in nnU-Net."""

    @property
    def dims(self) -> int:
        """2 or 3."""
        return len(self.strides[0])
