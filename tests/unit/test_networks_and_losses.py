import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from segpipe.labels import Labels, Target
from segpipe.losses.compound import deep_supervision, dice_cross_entropy, loss_for, shrink_labels, supervision_weights
from segpipe.losses.dice import soft_dice_loss
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.spec import NetworkSpec

ISOTROPIC = {"strides": ((1, 1, 1), (2, 2, 2), (2, 2, 2)), "kernel_sizes": ((3, 3, 3),) * 3}
ANISOTROPIC = {"strides": ((1, 1, 1), (1, 2, 2), (2, 2, 2)), "kernel_sizes": ((1, 3, 3), (3, 3, 3), (3, 3, 3))}
FLAT = {"strides": ((1, 1), (2, 2), (2, 2)), "kernel_sizes": ((3, 3),) * 3}
SPECS = [
    NetworkSpec(architecture=a, features=(4, 8, 16), encoder_blocks=b, decoder_convs=d, **shape)
    for a, b, d in (("plain_unet", (2, 2, 2), (2, 2)), ("resenc_unet", (1, 3, 4), (1, 1)))
    for shape in (ISOTROPIC, ANISOTROPIC, FLAT)
]


@pytest.mark.parametrize("spec", SPECS, ids=lambda s: f"{s.architecture}-{s.strides[1]}")
class TestEveryNetwork:
    """The contract that every network keeps."""

    def test_shapes_and_gradients(self, spec):
        network = build_network(spec, 2, 3)
        x = torch.randn(2, 2, *(8, 16, 16)[-spec.dims :])
        assert network(x).shape == (2, 3, *x.shape[2:])
        maps = network.supervised(x)
        assert len(maps) == len(spec.features) - 2
        sum(m.square().mean() for m in maps).backward()
        unused = {n for n, p in network.named_parameters() if p.grad is None or not p.grad.any()}
        # The lowest head carries no loss; the first block of a residual stage starts as its shortcut, so its first half waits.
        assert all("seg_layers.0" in n or "conv1" in n or ".conv.bias" in n or "conv2.conv" in n for n in unused), (
            unused
        )

    def test_the_state_survives_a_round_trip(self, spec):
        first, second = build_network(spec, 1, 2), build_network(spec, 1, 2)
        second.load_state_dict(first.state_dict())
        x = torch.randn(1, 1, *(8, 16, 16)[-spec.dims :])
        assert torch.equal(first(x), second(x))

    def test_channels_last_gives_the_same(self, spec):
        network = build_network(spec, 1, 2)
        x = torch.randn(1, 1, *(8, 16, 16)[-spec.dims :])
        expected = network(x)
        to_device(network, torch.device("cpu"))
        torch.testing.assert_close(
            network(x.contiguous(memory_format=fast_memory_format(spec.dims))), expected, atol=1e-4, rtol=1e-4
        )


def probabilities(n, k, shape, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, k, *shape), generator=generator) * 2
    return logits, torch.randint(0, k, (n, *shape), generator=generator)


def members(k):
    """Those of labels 1 to k - 1."""
    return tuple((i,) for i in range(1, k))


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.integers(2, 4), st.booleans(), st.integers(0, 50))
def test_dice_equals_monai(n, k, batch_dice, seed):
    from monai.losses import DiceLoss

    logits, target = probabilities(n, k, (4, 5, 6), seed)
    theirs = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = 1 + soft_dice_loss(logits.softmax(1)[:, 1:], target, members(k), batch_dice=batch_dice)
    torch.testing.assert_close(ours, theirs(logits, target[:, None]), atol=1e-5, rtol=1e-5)


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 3), st.booleans(), st.integers(0, 50))
def test_region_dice_equals_monais_of_the_region_masks(n, batch_dice, seed):
    from monai.losses import DiceLoss

    logits, target = probabilities(n, 3, (4, 5, 6), seed)
    masks = torch.stack([target > 0, target == 2, (target == 0) | (target == 2)], 1).float()
    theirs = DiceLoss(sigmoid=True, batch=batch_dice, smooth_nr=1e-5, smooth_dr=1e-5)(logits, masks)
    ours = 1 + soft_dice_loss(logits.sigmoid(), target, ((1, 2), (2,), (0, 2)), batch_dice=batch_dice)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


REGIONS = Labels(
    targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
    regions=True, ignore=7, n_entries=4,
)  # fmt: skip
PLAIN = Labels.plain({"a": 1, "b": 2}, ignore=7)


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
@pytest.mark.parametrize("batch_dice", [False, True])
def test_ignored_voxels_enter_neither_loss_nor_gradient(labels, batch_dice):
    logits, target = probabilities(2, labels.n_outputs, (4, 5, 6), 3)
    target = target.clamp_max(2)
    target[:, 2:] = labels.ignore_index
    loss = loss_for(labels, batch_dice=batch_dice)
    logits.requires_grad_()
    value = loss(logits, target)
    value.backward()
    assert not logits.grad[:, :, 2:].any()
    assert logits.grad[:, :, :2].any()
    torch.testing.assert_close(
        value,
        loss_for(labels.model_copy(update={"ignore": None}), batch_dice=batch_dice)(logits[:, :, :2], target[:, :2]),
    )


@pytest.mark.parametrize("labels", [PLAIN, REGIONS])
def test_a_patch_without_a_labelled_voxel_teaches_nothing(labels):
    logits = torch.randn(1, labels.n_outputs, 4, 4, 4, requires_grad=True)
    loss_for(labels, batch_dice=False)(logits, torch.full((1, 4, 4, 4), labels.ignore_index)).backward()
    assert not logits.grad.any()


def test_dice_by_hand():
    # Foreground probabilities 1, 1, 0, 0 against labels 1, 0, 1, 0: overlap 1, sizes 2 and 2.
    p = torch.tensor([1.0, 1, 0, 0]).reshape(1, 1, 4)
    loss = soft_dice_loss(p, torch.tensor([[1, 0, 1, 0]]), ((1,),), batch_dice=False, smooth=0)
    assert float(loss) == -0.5


def test_an_absent_class_that_is_not_predicted_counts_as_found():
    p = torch.zeros(1, 1, 2)
    target = torch.zeros((1, 2), dtype=torch.long)
    assert float(soft_dice_loss(p, target, ((1,),), batch_dice=False)) == pytest.approx(-1)


def test_gradients_are_right():
    logits, target = probabilities(2, 3, (3, 4), 0)
    logits = logits.double().requires_grad_()
    for batch_dice in (False, True):
        assert torch.autograd.gradcheck(
            lambda x, b=batch_dice: soft_dice_loss(x.softmax(1)[:, 1:], target, members(3), batch_dice=b), logits
        )


def test_supervision_weights_are_halved_and_sum_to_one():
    assert supervision_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])


def test_deep_supervision_is_the_weighted_sum():
    logits, target = probabilities(2, 3, (4, 8, 8), 1)
    low = torch.randn(2, 3, 2, 4, 4)

    def loss(level, labels):
        return dice_cross_entropy(level, labels, members(3), batch_dice=False)

    expected = 2 / 3 * loss(logits, target) + 1 / 3 * loss(low, shrink_labels(target, (2, 4, 4)))
    torch.testing.assert_close(deep_supervision([logits, low], target, loss), expected)


def test_labels_are_shrunk_by_the_nearest_voxel():
    target = torch.arange(8).reshape(1, 8)[:, None, None, :].expand(1, 2, 2, 8)
    assert shrink_labels(target, (1, 1, 4))[0, 0, 0].tolist() == [1, 3, 5, 7]


@pytest.mark.gpu
def test_a_step_on_the_gpu_is_finite():
    network = to_device(build_network(SPECS[0], 1, 2), torch.device("cuda"))
    x = torch.randn(2, 1, 8, 16, 16, device="cuda").contiguous(memory_format=fast_memory_format(3))
    target = torch.zeros((2, 8, 16, 16), dtype=torch.long, device="cuda")
    loss = deep_supervision(
        network.supervised(x), target, lambda a, b: dice_cross_entropy(a, b, ((1,),), batch_dice=True)
    )
    loss.backward()
    assert np.isfinite(float(loss.detach()))
