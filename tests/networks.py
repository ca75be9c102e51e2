"""Networks for tests: specifications as a plan would make them, without a dataset."""

from segpipe.networks.spec import NetworkChoice, NetworkSpec
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings


def spec_of(name: str, patch=(32, 32, 32), *, spacing=None, base_features=4, probe=None, **options) -> NetworkSpec:
    """What a plan makes of a network for a patch; a probed network is taken to divide 32."""
    settings = PlannerSettings(base_features=base_features)
    spacing = spacing or (1.0,) * len(patch)
    design = Design(
        NetworkChoice(name=name, options=options), settings, Channels(1, 3, 3), spacing, probe or Trusting()
    )
    return design.network(design.topology(patch))


class Trusting:
    """A probe that knows that a network needs multiples of 32."""

    def problem(self, network, patch, channels):
        return None if all(n % 32 == 0 for n in patch) else "not a multiple of 32"
