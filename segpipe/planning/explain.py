"""What the sizing of a configuration decided, in words."""

from math import prod

from segpipe.planning.configuration import Sized
from segpipe.planning.design import Design
from segpipe.planning.schema import Decision


def sizing_decisions(name: str, median: tuple[float, ...], sized: Sized, design: Design) -> list[Decision]:
    """Patch, network and batch of a configuration."""
    return [_patch(name, median, sized, design), _network(name, sized, design), _batch(name, sized, design)]


def in_mm(spacing: tuple[float, ...]) -> str:
    """Spacing in words."""
    return " x ".join(f"{float(s):.4g}" for s in spacing) + " mm"


def _patch(name: str, median: tuple[float, ...], sized: Sized, design: Design) -> Decision:
    settings, measured = design.settings, design.is_measured
    cuts = len(sized.patches_tried) - 1
    cut = f"cut {cuts} time(s) to fit {design.budget_gb:g} GB" if cuts else f"fits {design.budget_gb:g} GB as it is"
    counted = "bytes of a training step" if settings.memory == "bytes" else "nnU-Net's count of convolution outputs"
    if measured:
        counted = "bytes of a training step, measured on the network"
    patch = sized.topology.patch_size
    return Decision(
        rule=f"{name}: patch",
        chosen="x".join(map(str, patch)),
        because=f"median image {'x'.join(f'{m:g}' for m in median)} at {in_mm(design.spacing_mm)}, {cut}",
        steps=(
            f"start: a box of equal edges in mm with {'256^3' if len(patch) == 3 else '2048^2'} voxels, cut to the median "
            "image, padded to what the poolings divide",
            f"need against budget, in {counted}; while it does not fit, the axis that is longest against the image is cut:",
            *sized.patches_tried,
        ),
    )


def _network(name: str, sized: Sized, design: Design) -> Decision:
    network, layout = sized.network, design.architecture.layout
    strides = [
        ("x".join(map(str, s)), "x".join(map(str, k)))
        for s, k in zip(network.strides, sized.topology.kernel_sizes, strict=True)
    ]
    if layout == "free":
        edges = "x".join(map(str, network.divisors))
        return Decision(
            rule=f"{name}: network",
            chosen=network.architecture,
            because=f"it was asked for; it takes patches whose edges are multiples of {edges} (found by trying)",
        )
    if layout == "fixed":
        return Decision(
            rule=f"{name}: network",
            chosen=f"{network.architecture}, {len(strides) - 1} poolings",
            because=f"it was asked for; an axis is pooled while {design.architecture.smallest} voxels are left of it and it is under "
            "2 times coarser than the finest",
            steps=tuple(f"resolution {i}: pooled by {stride}" for i, (stride, _) in enumerate(strides)),
        )
    return Decision(
        rule=f"{name}: network",
        chosen=f"{len(network.features)} stages, {network.features[0]} to {network.features[-1]} features",
        because="an axis is pooled while it has 8 voxels and is under 2 times coarser than the finest",
        steps=tuple(
            f"stage {i}: stride {stride}, kernel {kernel}, {f} features"
            for i, ((stride, kernel), f) in enumerate(zip(strides, network.features, strict=True))
        ),
    )


def _batch(name: str, sized: Sized, design: Design) -> Decision:
    settings = design.settings
    limit = f", at most {settings.max_batch}" if settings.max_batch else ""
    return Decision(
        rule=f"{name}: batch",
        chosen=str(sized.batch_size),
        because=f"memory allows {sized.batch_by_memory}, {settings.dataset_cover:.0%} of the dataset's voxels "
        f"{sized.batch_by_dataset}, at least {settings.min_batch}{limit}",
        steps=(
            f"by memory: {sized.batch_by_memory}",
            f"by dataset: {settings.dataset_cover:.0%} of the dataset's voxels at this spacing, in patches of "
            f"{prod(sized.topology.patch_size)} voxels: {sized.batch_by_dataset}",
            f"the smaller of both, at least {settings.min_batch}{limit or ', no upper limit in this recipe'}: {sized.batch_size}",
        ),
    )
