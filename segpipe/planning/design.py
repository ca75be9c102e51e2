"""A network for a patch, and its memory: laid out by the plan, or asked of the network itself. Pure but for the probe it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from math import ceil, prod
from typing import Protocol

from segpipe.dataset.fingerprint.schema import Fingerprint
from segpipe.errors import PlanError
from segpipe.networks.catalogue import PLANNED, Architecture, architecture_of, complete_options
from segpipe.networks.spec import NetworkChoice, NetworkSpec
from segpipe.planning.memory import activation_elements, training_bytes
from segpipe.planning.recipe import PlannerSettings
from segpipe.planning.topology import Topology, make_topology

_RESENC_BLOCKS = (1, 3, 4) + (6,) * 30
_DIVISORS = (1, 2, 4, 8, 16, 32, 64, 128)


@dataclass(frozen=True)
class Channels:
    """Numbers of channels of a dataset, as far as memory depends on them."""

    inputs: int
    outputs: int
    label_entries: int
    """Entries in the label declaration, which nnU-Net counts."""

    @classmethod
    def of(cls, fingerprint: Fingerprint) -> "Channels":
        """Channels of a dataset's images and labels."""
        labels = fingerprint.labels
        return cls(len(fingerprint.channel_names), labels.n_outputs, labels.n_entries)


class Need(Protocol):
    """Bytes of a training step: ``fixed + batch * per_sample``."""

    @property
    def fixed(self) -> int:
        """Bytes that do not depend on the batch."""
        ...

    @property
    def per_sample(self) -> int:
        """Bytes of one sample of a batch."""
        ...


class Probe(Protocol):
    """What can be found out by building a network. Implemented with torch, which planning does without."""

    def step_bytes(
        self, network: NetworkSpec, patch: tuple[int, ...], channels: Channels, activation_bytes: int
    ) -> "Need":
        """Memory of a training step."""
        ...

    def problem(self, network: NetworkSpec, patch: tuple[int, ...], channels: Channels) -> str | None:
        """Why the network cannot be trained on patches of this size; None where it can."""
        ...


@dataclass(frozen=True)
class Fit:
    """A network's need against the budget, in one of the ways to estimate it."""

    fits: bool
    batch: int
    """Largest batch that the budget holds."""
    gb: Callable[[int], float]
    """Memory of a batch size."""
    shown: str
    share: float = float("inf")
    """About how much of the patch's voxels would fit, where asking again takes long."""


@dataclass(frozen=True)
class Design:
    """How a chosen network follows from a patch."""

    choice: NetworkChoice
    settings: PlannerSettings
    channels: Channels
    spacing_mm: tuple[float, ...]
    probe: Probe | None = None
    divides: dict[int, int] = field(default_factory=dict, compare=False)
    """What edges must be multiples of, once that has been found, by number of axes."""

    def __post_init__(self) -> None:
        if self.choice.name == PLANNED:
            raise PlanError(
                f"network {PLANNED}: is another plan's U-Net at another width; give it to --network or --student, and a recipe plain_unet"
            )

    @property
    def architecture(self) -> Architecture:
        """The chosen network."""
        return architecture_of(self.choice.name)

    @property
    def is_measured(self) -> bool:
        """Whether memory is asked of the network; a planned U-Net's is known in closed form."""
        return self.architecture.layout != "unet"

    @property
    def budget_gb(self) -> float:
        """Memory that a training step may take."""
        settings = self.settings
        return settings.measured_budget_gb or settings.budget_gb if self.is_measured else settings.budget_gb

    @property
    def advice(self) -> str:
        """What to do where nothing fits."""
        smaller = (
            "a smaller network (most take an option for their width)"
            if self.is_measured
            else "a recipe with fewer features"
        )
        return f"plan with a larger --budget-gb, or take {smaller}"

    def topology(self, patch: tuple[float, ...]) -> Topology:
        """Poolings for a patch, and the patch padded to what they divide.

        Raises
        ------
        PlanError
            If the network can be trained on no patch near this one.
        """
        chosen = self.architecture
        if chosen.layout == "unet":
            return make_topology(self.spacing_mm, patch)
        if chosen.layout == "fixed":
            return make_topology(
                self.spacing_mm,
                patch,
                poolings=chosen.depth,
                min_edge=chosen.smallest,
                largest_divisor=chosen.largest_divisor,
            )
        return self._free_topology(patch)

    def network(self, topology: Topology) -> NetworkSpec:
        """Return the network of a topology; a U-Net's features double from stage to stage up to their limit."""
        chosen, options = self.architecture, complete_options(self.choice)
        if chosen.layout != "unet":
            fixed = chosen.layout == "fixed"
            return NetworkSpec(
                architecture=chosen.name,
                strides=topology.strides,
                divisors=self._divided_by(topology),
                patch_size=() if fixed else topology.patch_size,
                options=options,
                package=chosen.package,
            )
        settings, n = self.settings, topology.n_stages
        most = settings.max_features_3d if len(topology.patch_size) == 3 else settings.max_features_2d
        width, residual = float(options.get("width", 1.0)), chosen.name == "resenc_unet"  # type: ignore[arg-type]
        return NetworkSpec(
            architecture=chosen.name,
            features=tuple(max(round(width * min(settings.base_features * 2**i, most)), 1) for i in range(n)),
            kernel_sizes=topology.kernel_sizes,
            strides=topology.strides,
            encoder_blocks=_RESENC_BLOCKS[:n] if residual else (2,) * n,
            decoder_convs=(1 if residual else 2,) * (n - 1),
            options=options,
        )

    def weigh(self, topology: Topology) -> Fit:
        """Hold the network of a topology against the budget."""
        if self.is_measured:
            need = self._asked().step_bytes(
                self.network(topology), topology.patch_size, self.channels, self.settings.activation_bytes
            )
            return self._by_bytes(need)
        if self.settings.memory == "elements":
            return self._by_elements(topology)
        need = training_bytes(
            self.network(topology),
            topology.patch_size,
            self.channels.inputs,
            self.channels.outputs,
            self.settings.activation_bytes,
        )
        return self._by_bytes(need)

    def _by_elements(self, topology: Topology) -> Fit:
        """nnU-Net's rule: convolution outputs against a reference that fills a known GPU."""
        settings, flat = self.settings, len(topology.patch_size) == 2
        reference_batch = settings.reference_batch_2d if flat else settings.reference_batch_3d
        reference = settings.reference_elements_2d if flat else settings.reference_elements_3d
        budget = reference * settings.budget_gb / settings.reference_gb
        elements = activation_elements(self.network(topology), topology.patch_size, self.channels.label_entries)
        needed = elements if settings.patch_fits_reference_batch else elements / reference_batch * 2
        return Fit(
            fits=needed <= budget,
            batch=round(budget / elements * reference_batch),
            gb=lambda batch: elements * batch / reference_batch / reference * settings.reference_gb,
            shown=f"{needed / 1e6:.1f} of {budget / 1e6:.1f} million elements",
        )

    def _by_bytes(self, need: Need) -> Fit:
        """What a training step holds, against the budget itself."""
        least, budget_gb = self.settings.min_batch, self.budget_gb
        smallest = (need.fixed + least * need.per_sample) / 1e9
        return Fit(
            fits=smallest <= budget_gb,
            batch=max(int((budget_gb * 1e9 - need.fixed) // need.per_sample), 0),
            gb=lambda batch: (need.fixed + batch * need.per_sample) / 1e9,
            shown=f"{smallest:.2f} of {budget_gb:g} GB for a batch of {least}",
            share=(budget_gb * 1e9 - need.fixed) / (least * need.per_sample) if self.is_measured else float("inf"),
        )

    def _free_topology(self, patch: tuple[float, ...]) -> Topology:
        """Find the least number that edges must be multiples of: by trying."""
        dims, problem = len(patch), ""
        for divisor in (d for d in _DIVISORS if d >= self.divides.get(dims, 1)):
            padded = tuple(max(ceil(p / divisor), 1) * divisor for p in patch)
            topology = Topology(padded, ((1,) * dims,), ((3,) * dims,), (divisor,) * dims)
            # Both odd and even multiples: a patch may divide by more than the network needs.
            larger = tuple(p + divisor for p in padded)
            found = self._asked().problem(self.network(topology), padded, self.channels) or self._asked().problem(
                self.network(Topology(larger, topology.strides, topology.kernel_sizes, topology.divisors)),
                larger,
                self.channels,
            )
            if found is None:
                self.divides[dims] = divisor
                return topology
            problem = found
        raise PlanError(
            f"network {self.choice.name}: cannot be trained on {dims}D patches of about {'x'.join(f'{p:g}' for p in patch)}: {problem}"
        )

    def _divided_by(self, topology: Topology) -> tuple[int, ...]:
        """What the network's own poolings divide."""
        if self.architecture.layout == "free":
            return topology.divisors
        if not self.architecture.divides:
            return (1,) * len(topology.patch_size)
        return tuple(prod(axis) for axis in zip(*topology.strides, strict=True))

    def _asked(self) -> Probe:
        if self.probe is None:
            raise PlanError(
                f"network {self.choice.name}: its memory has to be measured; make the plan by segpipe.plan or `segpipe plan`"
            )
        return self.probe
