"""Feature maps of a network, taken by the names of its modules."""

from difflib import get_close_matches
from fnmatch import fnmatchcase
from typing import Any

from torch import Tensor, nn

from segpipe.errors import DistillationError

_MOST_LISTED = 12


class Taps:
    """Keeps what some modules put out in the last forward pass.

    A module's output is kept as it is when the module returns: name a whole block, not a normalisation whose output the activation
    behind it overwrites.
    """

    def __init__(self, network: nn.Module, patterns: tuple[str, ...], whose: str) -> None:
        """Attach to modules.

        Parameters
        ----------
        network : Module
        patterns : tuple of str
            Names of modules, in which ``*`` stands for anything; each is that of exactly one.
        whose : str
            The network, in words.

        Raises
        ------
        DistillationError
            If a pattern is that of no module or of several.
        """
        self.maps: dict[str, Tensor] = {}
        self.handles = []
        self.sources = {pattern: _one_module(network, pattern, whose) for pattern in dict.fromkeys(patterns)}
        modules = dict(network.named_modules())
        for pattern, name in self.sources.items():
            self.handles.append(modules[name].register_forward_hook(self._keeper(pattern, name, whose)))

    def taken(self) -> dict[str, Tensor]:
        """Return the maps of the last forward pass by what they were asked by; they are given once."""
        taken, self.maps = self.maps, {}
        return taken

    def remove(self) -> None:
        """Leave the network as it was."""
        for handle in self.handles:
            handle.remove()
        self.handles.clear()
        self.maps.clear()

    def _keeper(self, pattern: str, name: str, whose: str) -> Any:
        def keep(_module: nn.Module, _inputs: Any, output: Any) -> None:
            if not isinstance(output, Tensor) or output.ndim < 4:
                found = f"{type(output).__name__}" if not isinstance(output, Tensor) else f"shape {tuple(output.shape)}"
                raise DistillationError(
                    f"module {name!r} of the {whose} puts out {found}; expected one map (N, C, ...): name another module"
                )
            self.maps[pattern] = output

        return keep


def for_student(at: str) -> str:
    """Name of the student's module in ``STUDENT|TEACHER``, or in a name that both have."""
    return at.partition("|")[0]


def for_teacher(at: str) -> str:
    """Name of the teacher's module in ``STUDENT|TEACHER``, or in a name that both have."""
    first, _, second = at.partition("|")
    return second or first


def _one_module(network: nn.Module, pattern: str, whose: str) -> str:
    names: list[str] = [name for name, _ in network.named_modules() if name]
    found = [name for name in names if fnmatchcase(name, pattern)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(found[:_MOST_LISTED]) + (", ..." if len(found) > _MOST_LISTED else "")
        raise DistillationError(
            f"{pattern!r} is the name of {len(found)} modules of the {whose}; give one of them: {listed}"
        )
    close = get_close_matches(pattern, names, n=_MOST_LISTED, cutoff=0.4) or names[:_MOST_LISTED]
    raise DistillationError(f"no module of the {whose} is called {pattern!r}; some that there are: {', '.join(close)}")
