"""Every network, built small."""

import sys

import pytest
import torch

from segpipe.networks.build import build_network
from tests.networks import spec_of

PATCHES = {2: (32, 64), 3: (32, 32, 32)}


def patch_of(name, dims):
    # It normalises maps 32 times smaller, which need more than one voxel.
    return (64, 32, 32) if name == "monai:SwinUNETR" and dims == 3 else PATCHES[dims]


def built(name, options, dims):
    torch.manual_seed(0)
    return build_network(spec_of(name, patch_of(name, dims), **options), 2, 3)


def images(name, dims, n=2):
    return torch.randn((n, 2, *patch_of(name, dims)), generator=torch.Generator().manual_seed(1))


# Networks of other packages

PLUGIN = """
import torch
from torch import nn

class Tiny(nn.Module):
    def __init__(self, dims, n_channels, n_outputs, hidden):
        super().__init__()
        conv = {2: nn.Conv2d, 3: nn.Conv3d}[dims]
        self.body = nn.Sequential(conv(n_channels, hidden, 3, padding=1), nn.ReLU(), conv(hidden, n_outputs, 1))

    def forward(self, x):
        return self.body(x)

def tiny(dims, n_channels, n_outputs, hidden=8):
    return Tiny(dims, n_channels, n_outputs, hidden)

def no_module(n_channels, n_outputs):
    return "nothing"

class Odd(nn.Module):
    # Heads that are none.
    def __init__(self, kind, n_outputs):
        super().__init__()
        self.kind, self.scale = kind, torch.ones(1)
        self.body = nn.Conv2d(1, n_outputs, 1)

    def forward(self, x):
        y = self.body(x * self.scale)
        if self.kind == "values" and float(x.mean()) > 0:
            y = 2 * y
        return {"fewer": [y, y[:, :1]], "scalar": (y, y.mean()), "values": y, "tensor": y, "smaller": y[..., ::2, ::2]}[self.kind]

def odd(n_channels, n_outputs, kind="tensor"):
    return Odd(kind, n_outputs)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """An installed package that offers two networks."""
    (tmp_path / "tinynets.py").write_text(PLUGIN, encoding="utf-8")
    info = tmp_path / "tinynets-1.5.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: tinynets\nVersion: 1.5\n", encoding="utf-8")
    offered = ("tiny = tinynets:tiny", "nothing = tinynets:no_module", "odd = tinynets:odd", "u2net = tinynets:tiny")
    (info / "entry_points.txt").write_text("\n".join(("[segpipe.networks]", *offered)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    sys.modules.pop("tinynets", None)
