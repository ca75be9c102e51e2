import copy
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segpipe.errors import ModelError, NetworkError
from segpipe.networks.blocks import ChannelsLastNorm, ConvNorm, ExactConv3d, ResidualBlock, make_norm
from segpipe.networks.build import build_network
from segpipe.networks.catalogue import architecture_of, complete_options
from segpipe.networks.danet import Bottleneck, ChannelAttention, PositionAttention
from segpipe.networks.foreign import monai_names
from segpipe.networks.measure import MemoryProbe
from segpipe.networks.segmenter import colour_to_channels
from segpipe.networks.spec import NetworkChoice, parse_choice
from segpipe.networks.ternausnet import Upward
from segpipe.networks.u2net import ResidualU
from segpipe.networks.unet3d_2016 import Pair
from segpipe.planning.design import Channels, Design
from segpipe.planning.recipe import PlannerSettings
from segpipe.training.initial import InitialWeights, take_over
from tests.helpers.networks import built, images
from tests.networks import spec_of

# Exact sizes


def test_the_3d_u_net_of_2016_has_the_parameters_of_the_paper():
    """Which counts weights and biases of convolutions, without those of the normalisation."""
    network = build_network(spec_of("unet3d_2016", (64, 64, 64)), 3, 3)
    assert sum(p.numel() for n, p in network.named_parameters() if "norm" not in n) == 19_069_955


def test_ternausnet_has_vgg11_as_its_encoder():
    network = build_network(spec_of("ternausnet", (64, 64)), 3, 1)
    # Of torchvision's vgg11 without its classifier.
    assert sum(p.numel() for p in network.features.parameters()) == 9_220_480
    shapes = {n: tuple(p.shape) for n, p in network.features.named_parameters() if n.endswith("weight")}
    assert shapes["0.weight"] == (64, 3, 3, 3)
    assert shapes["18.weight"] == (512, 512, 3, 3)
    assert len(shapes) == 8


# Blocks against their formula, written out


def conv(x, m, **changes):
    return F.conv2d(x, m.weight, m.bias, **{"stride": m.stride, "padding": m.padding, "dilation": m.dilation} | changes)


def normed(x):
    """Batch normalisation of fresh parameters, by its definition."""
    mean, var = x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), unbiased=False, keepdim=True)
    return (x - mean) / (var + 1e-5).sqrt()


def cbr(x, m):
    return normed(conv(x, m.conv)).relu()


def test_a_residual_u_block_is_its_drawing():
    """RSU-4: first convolution; three levels with two poolings between; a dilated bottom; and up again."""
    torch.manual_seed(0)
    block = ResidualU(3, 4, 5, ((2, 2), (2, 2)), (1, 1, 1, 2), "batch")
    x = torch.randn(2, 3, 13, 10)
    first = cbr(x, block.first)
    one = cbr(first, block.down[0])
    two = cbr(F.max_pool2d(one, 2, 2, ceil_mode=True), block.down[1])
    three = cbr(F.max_pool2d(two, 2, 2, ceil_mode=True), block.down[2])
    assert three.shape[2:] == (4, 3)
    four = cbr(three, block.bottom)
    up3 = cbr(torch.cat((four, three), 1), block.up[2])
    up3 = F.interpolate(up3, two.shape[2:], mode="bilinear", align_corners=False)
    up2 = cbr(torch.cat((up3, two), 1), block.up[1])
    up2 = F.interpolate(up2, one.shape[2:], mode="bilinear", align_corners=False)
    expected = cbr(torch.cat((up2, one), 1), block.up[0]) + first
    torch.testing.assert_close(block(x), expected)
    assert block.bottom.conv.dilation == (2, 2)
    assert block.up[0].conv.out_channels == 5


def test_the_dilated_residual_u_block_is_its_drawing():
    """RSU-4F: no pooling; dilations 1, 2, 4, 8, 4, 2, 1."""
    torch.manual_seed(0)
    block = ResidualU(3, 4, 5, ((1, 1), (1, 1)), (1, 2, 4, 8), "batch")
    assert [m.conv.dilation[0] for m in (*block.down, block.bottom, *reversed(block.up))] == [1, 2, 4, 8, 4, 2, 1]
    x = torch.randn(2, 3, 9, 9)
    first = cbr(x, block.first)
    one = cbr(first, block.down[0])
    two = cbr(one, block.down[1])
    three = cbr(two, block.down[2])
    four = cbr(three, block.bottom)
    up = cbr(torch.cat((cbr(torch.cat((four, three), 1), block.up[2]), two), 1), block.up[1])
    torch.testing.assert_close(block(x), cbr(torch.cat((up, one), 1), block.up[0]) + first)


@pytest.mark.parametrize(("channels", "shape"), [(16, (5, 7)), (154, (3, 5)), (20, (3, 4, 2)), (4, (6, 6))])
def test_position_attention_is_the_explicit_softmax(channels, shape):
    """Channel numbers that do and that do not divide into heads as wide as the keys."""
    torch.manual_seed(0)
    attention = PositionAttention(channels, len(shape))
    x = torch.randn(2, channels, *shape)
    assert torch.equal(attention(x), x)
    with torch.no_grad():
        attention.gamma.fill_(0.7)
    query, key, value = (m(x).flatten(2) for m in (attention.query_conv, attention.key_conv, attention.value_conv))
    assert query.shape[1] == max(channels // 8, 1)
    matrix = torch.softmax(query.transpose(1, 2) @ key, dim=-1)
    expected = 0.7 * (value @ matrix.transpose(1, 2)).reshape(x.shape) + x
    torch.testing.assert_close(attention(x), expected, atol=1e-5, rtol=1e-4)
    inputs = torch.randn(2, channels, *shape, requires_grad=True)
    ours = torch.autograd.grad(attention(inputs).square().sum(), inputs)[0]
    q, k, v = (m(inputs).flatten(2) for m in (attention.query_conv, attention.key_conv, attention.value_conv))
    explicit = 0.7 * (v @ torch.softmax(q.transpose(1, 2) @ k, -1).transpose(1, 2)).reshape(inputs.shape) + inputs
    torch.testing.assert_close(ours, torch.autograd.grad(explicit.square().sum(), inputs)[0], atol=1e-3, rtol=1e-3)


def test_channel_attention_is_its_formula():
    torch.manual_seed(0)
    attention, x = ChannelAttention(), torch.randn(2, 6, 4, 5)
    assert torch.equal(attention(x), x)
    with torch.no_grad():
        attention.gamma.fill_(0.3)
    rows = x.reshape(2, 6, 20)
    energy = torch.einsum("nil,njl->nij", rows, rows)
    weights = torch.exp(energy.max(-1, keepdim=True).values - energy)
    weights = weights / weights.sum(-1, keepdim=True)
    torch.testing.assert_close(attention(x), 0.3 * torch.einsum("nij,njl->nil", weights, rows).reshape(x.shape) + x)


def test_a_bottleneck_is_its_drawing():
    torch.manual_seed(0)
    block = Bottleneck(8, 4, (2, 1), 2, "batch")
    x = torch.randn(2, 8, 9, 9)
    y = normed(conv(x, block.conv1)).relu()
    y = normed(F.conv2d(y, block.conv2.weight, None, (2, 1), 2, 2)).relu()
    y = normed(conv(y, block.conv3))
    shortcut = normed(F.conv2d(x, block.downsample[0].weight, None, (2, 1)))
    torch.testing.assert_close(block(x), (y + shortcut).relu())


def test_the_blocks_of_the_u_nets_are_their_drawings():
    torch.manual_seed(0)

    def inorm(x):
        mean, var = x.mean((2, 3), keepdim=True), x.var((2, 3), unbiased=False, keepdim=True)
        return (x - mean) / (var + 1e-5).sqrt()

    block, x = ConvNorm(3, 4, (3, 3), (2, 1), "instance"), torch.randn(2, 3, 8, 9)
    torch.testing.assert_close(block(x), F.leaky_relu(inorm(conv(x, block.conv)), 0.01), atol=1e-5, rtol=1e-4)
    block = ResidualBlock(3, 4, (3, 3), (2, 2), "instance")
    x = torch.randn(2, 3, 8, 10)
    main = inorm(conv(F.leaky_relu(inorm(conv(x, block.conv1.conv)), 0.01), block.conv2.conv))
    shortcut = inorm(F.conv2d(F.avg_pool2d(x, 2), block.skip[1].conv.weight))
    torch.testing.assert_close(block(x), F.leaky_relu(main + shortcut, 0.01), atol=1e-5, rtol=1e-4)
    pair, x = Pair(3, 4, 6, 2, "batch"), torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(pair(x), normed(conv(normed(conv(x, pair.conv1)).relu(), pair.conv2)).relu())
    up, x = Upward(3, 4, 5, (2, 1)), torch.randn(1, 3, 4, 6)
    expected = F.conv_transpose2d(conv(x, up.conv).relu(), up.up.weight, up.up.bias, (2, 1), 1, (1, 0)).relu()
    assert expected.shape == (1, 5, 8, 6)
    torch.testing.assert_close(up(x), expected)


@pytest.mark.parametrize("kind", ["instance", "batch", "group"])
def test_norms_are_torchs_own(kind):
    torch.manual_seed(0)
    x = torch.randn(2, 12, 4, 5, 6)
    theirs = {"instance": nn.InstanceNorm3d(12, affine=True), "batch": nn.BatchNorm3d(12), "group": nn.GroupNorm(4, 12)}
    torch.testing.assert_close(make_norm(kind, 12, 3)(x), theirs[kind](x), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("shape", [(1, 2, 1), (2, 2, 2), (8, 8, 8), (20, 20, 20)])
def test_the_norm_of_small_maps_has_exact_gradients_in_half_precision(shape):
    """Against float64, on the values that bfloat16 holds."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn((2, 8, *shape), generator=generator).bfloat16().contiguous(memory_format=torch.channels_last_3d)
    given = torch.randn(x.shape, generator=generator).bfloat16()
    ours, exact = x.clone().requires_grad_(), x.double().requires_grad_()
    ChannelsLastNorm.apply(ours, torch.ones(8), torch.zeros(8), 1e-5).backward(given)
    F.instance_norm(exact, eps=1e-5).backward(given.double())
    assert (ours.grad.double() - exact.grad).abs().max() < 0.03 * exact.grad.abs().max()


def test_a_constant_channel_stays_finite_in_half_precision():
    x = torch.full((2, 4, 2, 2, 2), 3.0).bfloat16().contiguous(memory_format=torch.channels_last_3d).requires_grad_()
    ChannelsLastNorm.apply(x, torch.ones(4), torch.zeros(4), 1e-5).backward(torch.randn(x.shape).bfloat16())
    # What is the same everywhere is taken away: no gradient but that of differences, scaled by 1 / sqrt(eps).
    assert x.grad.abs().max() < 5 / 1e-5**0.5


@pytest.mark.parametrize(("kernel", "edge"), [(3, 2), (5, 3), (7, 4)])
def test_convolutions_of_thin_maps_have_the_right_gradient_in_half_precision(kernel, edge):
    """torch's own weight gradient is memory that was never written: seen where other numbers have been before."""
    spec = spec_of("plain_unet")
    own = [m for m in build_network(spec, 1, 2).modules() if isinstance(m, nn.Conv3d)]
    assert {type(m) for m in own} == {ExactConv3d}
    generator = torch.Generator().manual_seed(0)
    layer = ExactConv3d(8, 8, kernel, padding=kernel // 2)
    for _ in range(5):
        x = torch.randn((2, 8, edge, 6, 6), generator=generator)
        given = torch.randn(x.shape, generator=generator)
        gradients = []
        for half in (True, False):
            layer.zero_grad()
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=half):
                layer(x).backward(given)
            gradients.append(layer.weight.grad.clone())
        torch.testing.assert_close(gradients[0], gradients[1])


# Names, options and messages


def test_a_choice_is_read_as_written():
    assert parse_choice("u2net") == NetworkChoice(name="u2net")
    read = parse_choice("monai:UNet:channels=[16,32,64],strides=[2,2],norm=batch,dropout=0.1,bias=false")
    assert read.name == "monai:UNet"
    assert read.options == {"channels": [16, 32, 64], "strides": [2, 2], "norm": "batch", "dropout": 0.1, "bias": False}
    assert "/" not in parse_choice("plain_unet:width=0.5,norm=../x").slug


def test_lists_in_lists_are_one_value():
    read = parse_choice("monai:DynUNet:kernel_size=[[3,3,3],[1,3,3]],strides=[1,[1,2,2]],act={}")
    assert read.options == {"kernel_size": [[3, 3, 3], [1, 3, 3]], "strides": [1, [1, 2, 2]], "act": {}}
    assert parse_choice(read.text) == read


@pytest.mark.parametrize("text", ["", "u2net:", "u2net:width", "u2net:=2", "a b", "monai:", "u2net:width=1,width=2"])
def test_a_choice_that_is_written_wrong_is_refused(text):
    with pytest.raises(NetworkError, match="expected"):
        parse_choice(text)


def test_unknown_networks_and_options_are_named_with_those_that_are_known():
    with pytest.raises(NetworkError, match=r"'unet'.*plain_unet, resenc_unet, planned, u2net"):
        architecture_of("unet")
    with pytest.raises(NetworkError, match=r"depth.*width=1.0, norm=batch"):
        complete_options(NetworkChoice(name="u2net", options={"depth": 3}))
    with pytest.raises(NetworkError, match=r"width.*found -1"):
        complete_options(NetworkChoice(name="u2net", options={"width": -1}))
    with pytest.raises(NetworkError, match=r"no option filters; its options are.*init_filters"):
        build_network(spec_of("monai:SegResNet", filters=8), 1, 2)
    with pytest.raises(NetworkError, match="in_channels follows from the plan"):
        build_network(spec_of("monai:SegResNet", in_channels=8), 1, 2)
    with pytest.raises(NetworkError, match=r"has none of that name.*SwinUNETR"):
        build_network(spec_of("monai:Nonsense"), 1, 2)
    with pytest.raises(NetworkError, match="not for segmentation"):
        build_network(spec_of("monai:Discriminator"), 1, 2)
    with pytest.raises(NetworkError, match=r"cannot be built with .*norm.*nonsense"):
        build_network(spec_of("monai:SegResNet", norm="nonsense"), 1, 2)
    assert {"SegResNet", "SwinUNETR", "MedNeXt", "UNETR", "DynUNet", "BasicUNet"} <= set(monai_names())


# MONAI's

SEGMENTERS = {
    "AttentionUnet": {"channels": [4, 8, 16], "strides": [2, 2]},
    "BasicUNet": {"features": [4, 4, 8, 8, 8, 4]},
    "BasicUNetPlusPlus": {"features": [4, 4, 8, 8, 8, 4]},
    "DynUNet": {"kernel_size": [3, 3, 3], "strides": [1, 2, 2], "upsample_kernel_size": [2, 2], "filters": [4, 8, 16]},
    "FlexibleUNet": {"backbone": "resnet10"},
    "SegResNet": {},
    "SegResNetDS": {"init_filters": 8},
    "SwinUNETR": {"feature_size": 12},
    "UNETR": {"hidden_size": 24, "mlp_dim": 48, "num_heads": 2},
    "UNet": {"channels": [4, 8, 16], "strides": [2, 2]},
    "VNet": {},
}


@pytest.mark.parametrize("name", SEGMENTERS)
def test_segmenters_of_monai_are_offered_and_give_logits_of_the_images_grid(name):
    assert name in monai_names()
    network = build_network(spec_of(f"monai:{name}", (64, 64), **SEGMENTERS[name]), 2, 3)
    with torch.no_grad():
        assert network.eval()(torch.zeros(1, 2, 64, 64)).shape == (1, 3, 64, 64)


NO_SEGMENTERS = {
    "DiffusionModelUNet": ({}, "its forward pass needs x, timesteps; expected images alone"),
    "DenseNet121": ({}, r"images of 64x64 and 11 outputs it gave a tensor of \(2, 11\); expected logits"),
    "PatchDiscriminator": ({"channels": 4}, r"it gave a tensor of \(2, 4, 32, 32\); expected logits"),
    # As many channels as outputs would hide what these are.
    "PatchDiscriminator-3": ({"channels": 3}, r"it gave a tensor of \(2, 3, 32, 32\); expected logits"),
    "AutoencoderKL": ({}, r"it gave a tensor of \(2, 3, 8, 8\); expected logits"),
    "VQVAE": ({}, r"it gave a tensor of \(\); expected logits"),
    "MultiScalePatchDiscriminator": ({"num_d": 2, "num_layers_d": 3, "channels": 4}, "it gave tuple; expected logits"),
}


@pytest.mark.parametrize("name", NO_SEGMENTERS)
def test_what_is_no_segmenter_is_neither_offered_nor_built(name):
    options, problem = NO_SEGMENTERS[name]
    network = name.partition("-")[0]
    assert network not in monai_names()
    with pytest.raises(
        NetworkError, match=f"monai:{network}: is not for segmentation: .*{problem}.*; use one of AHNet"
    ) as told:
        build_network(spec_of(f"monai:{network}", (64, 64), **options), 1, 3)
    assert "\n" not in str(told.value)
    # Another size would not help, so planning does not look for one.
    with pytest.raises(NetworkError, match="is not for segmentation"):
        MemoryProbe().problem(spec_of(f"monai:{network}", (64, 64), **options), (64, 64), Channels(1, 3, 4))


def test_a_network_that_is_not_known_is_tried_and_its_weights_do_not_depend_on_that():
    assert "HighResBlock" not in monai_names()
    weights = []
    for _ in range(2):
        torch.manual_seed(0)
        network = build_network(spec_of("monai:HighResBlock", (64, 64), kernels=[3, 3], dilation=1), 1, 3)
        weights.append([p.detach().clone() for p in network.parameters()])
    assert network(torch.zeros(1, 1, 20, 30)).shape == (1, 3, 20, 30)
    assert all(torch.equal(a, b) for a, b in zip(*weights, strict=True))


# Networks of other packages


def test_a_network_may_hold_tensors_that_are_no_weights(plugin):
    design = Design(NetworkChoice(name="odd"), PlannerSettings(), Channels(1, 3, 3), (1.0, 1.0), MemoryProbe())
    topology = design.topology((32.0, 32.0))
    assert topology.divisors == (1, 1)
    assert design.weigh(topology).fits


def test_a_missing_package_is_named(plugin, monkeypatch):
    spec = spec_of("tiny", (32, 32))
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p != str(plugin)])
    with pytest.raises(NetworkError, match=r"package tinynets 1\.5, which is not installed here"):
        build_network(spec, 2, 3)


# Weights from elsewhere


def test_imagenet_weights_of_a_resnet_are_taken_over(tmp_path):
    network = build_network(spec_of("danet", (32, 32), width=0.125), 1, 3)
    theirs = {
        n: torch.rand_like(p.float()) for n, p in network.state_dict().items() if n.startswith(("conv1.", "layer"))
    }
    theirs["conv1.weight"] = torch.randn(8, 3, 7, 7)
    torch.save({"state_dict": theirs}, tmp_path / "resnet.pt")
    take_over(network, InitialWeights.of(tmp_path / "resnet.pt"))
    torch.testing.assert_close(network.layer1[0].conv1.weight, theirs["layer1.0.conv1.weight"])
    torch.testing.assert_close(network.conv1.weight, colour_to_channels(theirs["conv1.weight"], 1))


def test_danets_third_stage_begins_with_dilation_1_and_that_of_older_plans_with_2():
    now = spec_of("danet", (32, 32), width=0.125)
    old = now.model_copy(update={"options": {k: v for k, v in now.options.items() if k != "third_stage"}})
    asked = spec_of("danet", (32, 32), width=0.125, third_stage=2)
    first, second, third = (build_network(spec, 2, 3).eval() for spec in (now, old, asked))
    assert [[b.conv2.dilation for b in n.layer3[:2]] for n in (first, second, third)] == [
        [(1, 1), (2, 2)],
        [(2, 2), (2, 2)],
        [(2, 2), (2, 2)],
    ]
    for other in (second, third):
        other.load_state_dict(first.state_dict())
    x = images("danet", 2, 1)
    assert torch.equal(second(x), third(x))
    assert not torch.equal(first(x), second(x))


def test_a_file_that_holds_no_weights_is_refused(tmp_path):
    torch.save([1, 2], tmp_path / "list.pth")
    (tmp_path / "text.pth").write_text("no weights", encoding="utf-8")
    for name, reason in (
        ("list.pth", "holds list"),
        ("text.pth", "no weights can be read"),
        ("gone.pt", "no such file"),
    ):
        with pytest.raises(ModelError, match=reason):
            InitialWeights(tmp_path / name, None).read()


def test_networks_can_be_copied():
    """Training keeps the best weights, and distillation a teacher."""
    network = built("danet", {"width": 0.125}, 2).eval()
    x = images("danet", 2, 1)
    assert torch.equal(copy.deepcopy(network)(x), network(x))
