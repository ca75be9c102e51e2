"""Forward and backward pass of each network on a device: no wait, no tensor of the host, the logits of a processor."""

import pytest
import torch

from segpipe.networks.build import build_network, to_device
from tests.networks import spec_of
from tests.simulated.backend import MAX_POOL3D_IS_DETERMINISTIC
from tests.simulated.work import watched

# With the options that make each small. In 2D only: those that take too long in 3D on a processor.
NETWORKS = {
    "plain_unet": ({}, (2, 3)),
    "resenc_unet": ({}, (2, 3)),
    "u2net": ({"width": 0.0625}, (2, 3)),
    "u2netp": ({"width": 0.125}, (2, 3)),
    "danet": ({"width": 0.0625}, (2, 3)),
    "ternausnet": ({}, (2,)),
    "unet3d_2016": ({"width": 0.125}, (2, 3)),
    "monai:SegResNet": ({}, (2, 3)),
    "monai:SwinUNETR": ({"feature_size": 12}, (2,)),
    "monai:MedNeXt": ({"init_filters": 4}, (2, 3)),
}
QUICK_IN_HALF = ("plain_unet", "resenc_unet")
"""A processor takes long for the others in half precision: these in bfloat16 in 2D only."""
MAX_POOLS = ("u2net", "u2netp", "danet", "unet3d_2016")
"""With maximum pooling, whose gradient has a deterministic form in 3D from torch 2.13 on."""
PATCHES = {2: (32, 64), 3: (32, 32, 32)}


def rows():
    for name, (_, dims) in NETWORKS.items():
        for n in dims:
            for precision in (torch.float32, torch.bfloat16, torch.float16):
                in_2d = n == 2 and precision == torch.bfloat16
                if precision == torch.float32 or name in QUICK_IN_HALF or in_2d:
                    yield pytest.param(name, n, precision, id=f"{name}-{n}d-{str(precision)[6:]}")


@pytest.mark.parametrize(("name", "dims", "precision"), list(rows()))
def test_a_network_computes_what_a_processor_does_without_a_wait(gpu, name, dims, precision):
    torch.manual_seed(0)
    options, _ = NETWORKS[name]
    network = build_network(spec_of(name, PATCHES[dims], **options), 2, 3)
    x = torch.randn((1, 2, *PATCHES[dims]), generator=torch.Generator().manual_seed(1))
    exact = precision == torch.float32
    expected = None
    if exact:
        to_device(network, torch.device("cpu")).eval()
        with torch.no_grad():
            expected = network(x)
    to_device(network, torch.device("cuda"))
    there = x.to("cuda")
    with watched(gpu) as waits:
        with torch.no_grad():
            found = network.eval()(there)
        with torch.autocast("cuda", dtype=torch.bfloat16 if exact else precision, enabled=not exact):
            heads = network.train().supervised(there)
        torch.stack([head.float().square().mean() for head in heads]).sum().backward()
    assert not waits
    if expected is not None:
        # Channels-last and contiguous sums differ as much on a processor: of danet's logits, which reach over 1000.
        torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=2e-3 * float(expected.abs().max()))
        # A step has a deterministic form: seen here, where the network is there already.
        torch.use_deterministic_algorithms(True)
        loss = torch.stack([head.square().mean() for head in network.supervised(there)]).sum()
        if dims == 3 and name in MAX_POOLS and not MAX_POOL3D_IS_DETERMINISTIC:
            with pytest.raises(RuntimeError, match="max_pool3d_with_indices_backward does not have a deterministic"):
                loss.backward()
        else:
            loss.backward()
