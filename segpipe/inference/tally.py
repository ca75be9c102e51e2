"""Numbers that are added up on the device that computes them, and brought to the host once a case."""

from torch import Tensor


class Tally:
    """A sum; adding to it waits for no device."""

    def __init__(self) -> None:
        self._total: Tensor | None = None

    def add(self, value: Tensor) -> None:
        """Add a scalar, wherever it lies."""
        value = value.detach()
        self._total = value if self._total is None else self._total + value.to(self._total.device)

    def settle(self) -> None:
        """Bring the sum to the host, so that whoever reads it later waits for nothing."""
        self._total = None if self._total is None else self._total.cpu()

    @property
    def value(self) -> float:
        """The sum; 0 where nothing was added. Waits for the device unless the sum is settled."""
        return 0 if self._total is None else self._total.item()
