import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segpipe.errors import ModelError, NetworkError, PlanError
from segpipe.networks.blocks import InstanceNorm
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.catalogue import architecture_of, network_names
from segpipe.networks.measure import MemoryProbe, n_parameters
from segpipe.networks.spec import NetworkChoice
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings
from segpipe.training.initial import InitialWeights, take_over
from tests.helpers.networks import built, images, patch_of
from tests.networks import spec_of

SMALL = {
    "plain_unet": {},
    "plain_unet-batch": {"norm": "batch"},
    "plain_unet-group": {"norm": "group"},
    "resenc_unet": {},
    "u2net": {"width": 0.125},
    "u2netp": {"width": 0.25},
    "danet": {"width": 0.125},
    "ternausnet": {},
    "unet3d_2016": {"width": 0.125},
    "monai:SegResNet": {},
    "monai:SwinUNETR": {"feature_size": 12},
    "monai:MedNeXt": {"init_filters": 8},
}
# A CPU takes seconds for these in 3D.
SLOW = ("ternausnet", "monai:SwinUNETR", "monai:MedNeXt")


def cases():
    for name, options in SMALL.items():
        for dims in (2, 3):
            marks = [pytest.mark.slow] if dims == 3 and name in SLOW else []
            yield pytest.param(name.split("-")[0], options, dims, id=f"{name}-{dims}d", marks=marks)


def stir(network):
    """Leave no weight at 0, behind which others would see no gradient."""
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in network.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=generator))


def before_a_norm(network):
    """Biases that the normalisation after them takes away: their gradient is 0 but for rounding."""
    names, last = set(), None
    for name, module in network.named_modules():
        is_norm = isinstance(
            module, (InstanceNorm, nn.BatchNorm2d, nn.BatchNorm3d, nn.GroupNorm, nn.InstanceNorm2d, nn.InstanceNorm3d)
        )
        if is_norm and last:
            names.add(f"{last}.bias")
        if not list(module.children()):
            last = name if isinstance(module, (nn.Conv2d, nn.Conv3d)) else None
    return names


@pytest.mark.parametrize(("name", "options", "dims"), list(cases()))
class TestEveryNetwork:
    """The contract that every network keeps."""

    def test_heads_gradients_and_a_training_step(self, name, options, dims):
        network, x = built(name, options, dims), images(name, dims)
        assert network(x).shape == (2, 3, *x.shape[2:])
        stir(network)
        heads = network.train().supervised(x)
        assert heads[0].shape == (2, 3, *x.shape[2:])
        assert all(h.shape[:2] == (2, 3) and h.isfinite().all() for h in heads)
        weights = network.head_weights(len(heads))
        assert len(weights) == len(heads)
        assert sum(weights) == pytest.approx(1)
        sum(
            w * F.cross_entropy(h, torch.zeros(h.shape[:1] + h.shape[2:], dtype=torch.long))
            for w, h in zip(weights, heads, strict=True)
        ).backward()
        trained = {n: p for n, p in network.named_parameters() if p.requires_grad}
        assert not [n for n, p in trained.items() if p.grad is None]
        without = {n for n, p in trained.items() if not p.grad.any()} - before_a_norm(network)
        assert not without, without

    def test_odd_sizes_are_taken(self, name, options, dims):
        network = built(name, options, dims).eval()
        x = torch.randn(1, 2, *(n - k for n, k in zip(patch_of(name, dims), (3, 5, 1), strict=False)))
        assert network(x).shape == (1, 3, *x.shape[2:])
        heads = network.train().supervised(torch.cat((x, x)))
        assert heads[0].shape[2:] == x.shape[2:]

    def test_the_state_survives_a_round_trip(self, name, options, dims):
        first, second = built(name, options, dims), built(name, options, dims)
        stir(first)
        x = images(name, dims, 1)
        assert not torch.equal(first.eval()(x), second.eval()(x))
        second.load_state_dict(first.state_dict())
        assert torch.equal(first(x), second(x))

    def test_channels_last_and_half_precision_give_the_same(self, name, options, dims):
        network, x = built(name, options, dims).eval(), images(name, dims, 1)
        with torch.no_grad():
            expected = network(x)
            to_device(network, torch.device("cpu"))
            last = x.contiguous(memory_format=fast_memory_format(dims))
            torch.testing.assert_close(network(last), expected, atol=2e-4 * max(float(expected.std()), 1), rtol=1e-3)
            with torch.autocast("cpu", dtype=torch.bfloat16):
                half = network(last).float()
        assert (half - expected).abs().mean() < 0.1 * expected.std() + 0.02

    def test_it_can_be_exported(self, name, options, dims):
        network, x = built(name, options, dims).eval(), images(name, dims, 1)
        with torch.no_grad():
            exported = torch.export.export(network, (x,)).module()
            torch.testing.assert_close(exported(x), network(x), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["plain_unet", "resenc_unet", "u2net", "danet", "ternausnet", "unet3d_2016"])
def test_anisotropic_plans_are_built(name):
    """Slices of 5 mm: pooled in the plane first; any size is taken, and heads have the image's shape."""
    options = {"width": 0.125} if name in ("u2net", "danet", "unet3d_2016") else {}
    spec = spec_of(name, (12, 64, 64), spacing=(5.0, 1.0, 1.0), **options)
    assert spec.strides[1] == (1, 2, 2)
    network = to_device(build_network(spec, 1, 2), torch.device("cpu"))
    x = torch.randn(2, 1, 11, 60, 64).contiguous(memory_format=torch.channels_last_3d)
    heads = network.supervised(x)
    assert heads[0].shape == (2, 2, 11, 60, 64)
    sum(h.square().mean() for h in heads).backward()
    assert all(p.grad.isfinite().all() for p in network.parameters() if p.grad is not None)


# Exact sizes


@pytest.mark.parametrize(("name", "expected"), [("u2net", 44_009_869), ("u2netp", 1_131_181)])
def test_u2net_has_the_parameters_of_the_original(name, expected):
    assert n_parameters(build_network(spec_of(name, (288, 288)), 3, 1)) == expected


@pytest.mark.parametrize(("backbone", "expected"), [("resnet50", 23_508_032), ("resnet101", 42_500_160)])
def test_danet_has_a_resnet_as_its_backbone(backbone, expected):
    network = build_network(spec_of("danet", (256, 256), backbone=backbone), 3, 19)
    own = [
        p.numel()
        for n, p in network.named_parameters()
        if n.split(".")[0] in ("conv1", "bn1", "layer1", "layer2", "layer3", "layer4")
    ]
    assert sum(own) == expected
    assert network.position.gamma.item() == network.channel.gamma.item() == 0
    assert [b.conv2.dilation for b in network.layer4] == [(4, 4), (8, 8), (16, 16)]
    assert [b.conv2.dilation[0] for b in network.layer3] == [1] + [2] * (len(network.layer3) - 1)
    # Output stride 8.
    seen = []
    network.layer4.register_forward_hook(lambda _m, _i, y: seen.append(tuple(y.shape[2:])))
    with torch.no_grad():
        network.eval()(torch.zeros(1, 3, 256, 256))
    assert seen == [(32, 32)]


def test_width_scales_every_feature_map():
    narrow, wide = (
        build_network(spec_of("plain_unet", (32, 32, 32), base_features=8, width=w), 1, 2) for w in (0.5, 1)
    )
    assert [s[0].convs[0].conv.out_channels for s in narrow.encoder.stages] == [4, 8, 16, 32]
    assert [s[0].convs[0].conv.out_channels for s in wide.encoder.stages] == [8, 16, 32, 64]
    for name in ("u2net", "danet", "unet3d_2016"):
        half, full = (n_parameters(build_network(spec_of(name, (64, 64), width=w), 1, 2)) for w in (0.5, 1.0))
        assert 3.5 < full / half < 4.2


# Networks of other packages


def test_another_packages_network_is_built_by_its_entry_point(plugin):
    assert "tiny" in network_names()
    spec = spec_of("tiny", (32, 32), hidden=4)
    assert spec.package == "tinynets 1.5"
    network = build_network(spec, 2, 3)
    assert network(torch.zeros(1, 2, 32, 32)).shape == (1, 3, 32, 32)
    assert n_parameters(network) == 2 * 4 * 9 + 4 + 4 * 3 + 3
    # It cannot take the place of a network that others know by that name.
    assert architecture_of("u2net").package is None
    with pytest.raises(NetworkError, match=r"no option size; its options are hidden"):
        build_network(spec_of("tiny", (32, 32), size=4), 2, 3)
    with pytest.raises(NetworkError, match="returned str; expected a torch module"):
        build_network(spec_of("nothing", (32, 32)), 2, 3)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        ("fewer", r"\(2, 1, \d+, \d+\); expected logits of 2 images and 3 outputs"),
        ("scalar", r"gave a tensor of \(\)"),
        ("smaller", "expected the same shape"),
        ("values", "depends on the values of an image"),
    ],
)
def test_a_network_that_gives_no_logits_is_refused_when_it_is_planned(plugin, kind, reason):
    design = Design(
        NetworkChoice(name="odd", options={"kind": kind}),
        PlannerSettings(),
        Channels(1, 3, 3),
        (1.0, 1.0),
        MemoryProbe(),
    )
    with pytest.raises((NetworkError, PlanError), match=reason):
        design.topology((32.0, 32.0))


# Weights from elsewhere


def test_imagenet_weights_of_vgg11_are_taken_over(tmp_path):
    network = build_network(spec_of("ternausnet", (32, 32)), 2, 3)
    theirs = {f"features.{n}": torch.randn_like(p) for n, p in network.features.state_dict().items()}
    theirs["features.0.weight"] = torch.randn(64, 3, 3, 3)
    theirs["classifier.0.weight"] = torch.randn(16, 16)
    torch.save(theirs, tmp_path / "vgg11.pth")
    left = take_over(network, InitialWeights.of(tmp_path / "vgg11.pth"))
    assert not [line for line in left if line.startswith(("features", "classifier"))]
    torch.testing.assert_close(network.features["3"].weight, theirs["features.3.weight"])
    # An image of two equal channels gets the answer that the same in three colours gets.
    x = torch.randn(1, 1, 8, 8)
    expected = F.conv2d(x.expand(-1, 3, -1, -1), theirs["features.0.weight"])
    torch.testing.assert_close(
        F.conv2d(x.expand(-1, 2, -1, -1), network.features["0"].weight), expected, atol=1e-4, rtol=1e-4
    )
    with pytest.raises(ModelError, match="none of its convolutions fits"):
        take_over(build_network(spec_of("ternausnet", (32, 32, 32)), 1, 3), InitialWeights.of(tmp_path / "vgg11.pth"))
    with pytest.raises(ModelError, match="no such file"):
        InitialWeights.of(tmp_path / "gone.pth")
    # Weights of two channels are no colours.
    given = {"features.0.weight": torch.randn(64, 2, 3, 3)}
    assert build_network(spec_of("ternausnet", (32, 32)), 1, 3).fit_pretrained(given)["features.0.weight"].shape[1] == 2
