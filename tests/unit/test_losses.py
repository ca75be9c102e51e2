import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError
from torch.nn import functional as F

from segpipe.core.labels import Labels, Target
from segpipe.losses.cldice import cldice_loss
from segpipe.losses.compound import Loss, shrink_labels
from segpipe.losses.overlap import generalised_dice_loss, soft_dice_loss, tversky_loss
from segpipe.losses.reference import Reference
from segpipe.losses.spec import DEFAULT_LOSS, LossTerm
from segpipe.losses.surface import boundary_loss, hausdorff_loss
from segpipe.losses.voxelwise import cross_entropy, top_k_cross_entropy
from segpipe.networks.build import build_network, fast_memory_format, to_device
from segpipe.networks.segmenter import Segmenter
from tests.networks import spec_of

NAMES = ("dice", "cross_entropy", "focal", "top_k", "tversky", "generalised_dice", "boundary", "hausdorff", "cldice")
REGIONS = Labels(
    targets=(Target(name="whole", values=(1, 2), paint=1), Target(name="core", values=(2,), paint=2)),
    regions=True, ignore=7, n_entries=4,
)  # fmt: skip
PLAIN = Labels.plain({"a": 1, "b": 2}, ignore=7)


def term(name, **options):
    return TypeAdapter(LossTerm).validate_python({"name": name, **options})


def drawn(n, k, shape, seed, *, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn((n, k, *shape), generator=generator, dtype=dtype) * 2
    return logits, torch.randint(0, k, (n, *shape), generator=generator)


def members(k):
    """Those of labels 1 to k - 1."""
    return tuple((i,) for i in range(1, k))


def reference(target, k, **meaning):
    return Reference(target, members(k), **meaning)


def one_hot(target, k):
    return F.one_hot(target, k).movedim(-1, 1).float()


ALIKE = settings(deadline=None, max_examples=15)
SIZES = (st.integers(1, 3), st.integers(2, 4), st.booleans(), st.integers(0, 50))


# Against MONAI's own


@ALIKE
@given(*SIZES)
def test_dice_equals_monais(n, k, batch, seed):
    from monai.losses import DiceLoss

    logits, target = drawn(n, k, (4, 5, 6), seed)
    theirs = DiceLoss(
        include_background=False, softmax=True, to_onehot_y=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5
    )
    ours = 1 + soft_dice_loss(logits.softmax(1)[:, 1:], target, members(k), batch_dice=batch)
    torch.testing.assert_close(ours, theirs(logits, target[:, None]), atol=1e-5, rtol=1e-5)


@ALIKE
@given(st.integers(1, 3), st.booleans(), st.integers(0, 50))
def test_region_dice_equals_monais_of_the_region_masks(n, batch, seed):
    from monai.losses import DiceLoss

    logits, target = drawn(n, 3, (4, 5, 6), seed)
    masks = torch.stack([target > 0, target == 2, (target == 0) | (target == 2)], 1).float()
    theirs = DiceLoss(sigmoid=True, batch=batch, smooth_nr=1e-5, smooth_dr=1e-5)(logits, masks)
    ours = 1 + soft_dice_loss(logits.sigmoid(), target, ((1, 2), (2,), (0, 2)), batch_dice=batch)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@ALIKE
@given(*SIZES)
def test_tversky_equals_monais(n, k, batch, seed):
    from monai.losses import TverskyLoss

    logits, target = drawn(n, k, (4, 5, 6), seed)
    theirs = TverskyLoss(include_background=False, softmax=True, to_onehot_y=True, alpha=0.2, beta=0.9, batch=batch)
    ours = tversky_loss(
        logits.softmax(1)[:, 1:], reference(target, k), false_positives=0.2, false_negatives=0.9, batch=batch
    )
    torch.testing.assert_close(ours, theirs(logits, target[:, None]), atol=1e-5, rtol=1e-4)


@ALIKE
@given(st.integers(1, 3), st.integers(2, 4), st.integers(0, 50))
def test_generalised_dice_equals_monais(n, k, seed):
    from monai.losses import GeneralizedDiceLoss

    logits, target = drawn(n, k, (4, 5, 6), seed)
    target[0][target[0] == k - 1] = 0  # absent from one sample
    # Their smoothing is added to sums of voxels over squared sizes, beside which it is not small.
    theirs = GeneralizedDiceLoss(softmax=True, to_onehot_y=True, smooth_nr=1e-9, smooth_dr=1e-9)(
        logits, target[:, None]
    )
    torch.testing.assert_close(generalised_dice_loss(logits, reference(target, k)), theirs, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("n", [4, 16, 32])
@pytest.mark.parametrize("scale", [1, 2_000])
def test_generalised_dice_costs_the_same_at_every_size(n, scale):
    """Half of one label taken for the other: sizes 1 and 3 quarters, so weights 9 and 1; by hand, and wholly wrong, and right.

    ``scale`` stands for a larger patch: each voxel as often, which a dimension of stride 0 gives without the memory.
    """
    target = torch.zeros((1, n, n), dtype=torch.long)
    target[:, : n // 4] = 1
    said = target.clone()
    said[:, : n // 8 or 1] = 0
    share = (n // 4 - (n // 8 or 1)) / (n // 4)

    def cost(answer):
        logits = F.one_hot(answer, 2).movedim(-1, 1).float() * 60
        larger = logits[..., None].expand(-1, -1, -1, -1, scale), target[..., None].expand(-1, -1, -1, scale)
        return float(generalised_dice_loss(larger[0], Reference(larger[1], ((1,),))))

    both = 2 * (9 * share + 3)
    sizes = 9 * (1 + share) + (3 + 3 + 1 - share)
    assert cost(said) == pytest.approx(1 - both / sizes, abs=1e-5)
    assert cost(1 - target) == pytest.approx(1, abs=1e-4)
    assert cost(target) == pytest.approx(0, abs=1e-5)


def test_generalised_dice_is_as_steep_in_a_large_patch():
    """The gradient of all logits together, of a wholly wrong answer: the same, however many voxels share it."""
    steep = []
    for n in (8, 64):
        target = torch.zeros((1, n, n, n), dtype=torch.long)
        target[:, : n // 4] = 1
        logits = torch.zeros((1, 2, n, n, n), requires_grad=True)
        generalised_dice_loss(logits, Reference(target, ((1,),))).backward()
        steep.append(float(logits.grad.abs().sum()))
    assert steep[1] == pytest.approx(steep[0], rel=1e-3)


def test_generalised_dice_of_absent_labels_is_finite():
    target = torch.zeros((2, 6, 6), dtype=torch.long)
    target[0, :2] = 1
    logits = torch.randn((2, 4, 6, 6), generator=torch.Generator().manual_seed(0), dtype=torch.float64).requires_grad_()
    loss = generalised_dice_loss(logits, reference(target, 4))
    loss.backward()
    assert 0 < float(loss.detach()) < 1
    assert torch.isfinite(logits.grad).all()
    # Of regions, none is anywhere.
    nowhere = generalised_dice_loss(logits[:, :1], Reference(torch.zeros_like(target), ((1,),), regions=True))
    assert float(nowhere.detach()) == 0


@ALIKE
@given(st.integers(1, 3), st.integers(2, 4), st.booleans(), st.integers(0, 50))
def test_focal_equals_monais(n, k, weighted, seed):
    """Which takes the mean over the classes too, of which all but the voxel's own are 0."""
    from monai.losses import FocalLoss

    logits, target = drawn(n, k, (4, 5, 6), seed)
    weights = torch.linspace(0.5, 2, k) if weighted else None
    theirs = FocalLoss(use_softmax=True, to_onehot_y=True, gamma=2.0, alpha=weights, reduction="none")
    total = theirs(logits, target[:, None]).sum()
    divisor = target.numel() if weights is None else weights[target].sum()
    ours = cross_entropy(logits, reference(target, k), weights=weights, gamma=2.0)
    torch.testing.assert_close(ours, total / divisor, atol=1e-5, rtol=1e-4)


@ALIKE
@given(st.integers(1, 3), st.integers(0, 50))
def test_focal_of_regions_equals_monais(n, seed):
    from monai.losses import FocalLoss

    logits, target = drawn(n, 2, (4, 5, 6), seed)
    masks = torch.stack([target > 0, target == 0], 1).float()
    regions = Reference(target, ((1,), (0,)), regions=True)
    theirs = FocalLoss(gamma=1.5)(logits, masks)
    torch.testing.assert_close(cross_entropy(logits, regions, gamma=1.5), theirs, atol=1e-5, rtol=1e-4)


@ALIKE
@given(st.integers(1, 2), st.integers(2, 3), st.integers(0, 50))
def test_boundary_equals_monais(n, k, seed):
    from monai.losses import BoundaryLoss

    logits, target = drawn(n, k, (7, 8, 6), seed)
    target[:, :3] = 0
    theirs = BoundaryLoss(include_background=False, softmax=True, to_onehot_y=True)(logits, target[:, None])
    ours = boundary_loss(logits.softmax(1)[:, 1:], reference(target, k), spacing=(1, 1, 1))
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-4)


@ALIKE
@given(st.integers(1, 2), st.integers(2, 3), st.integers(0, 50))
def test_hausdorff_equals_monais(n, k, seed):
    from monai.losses import HausdorffDTLoss

    logits, target = drawn(n, k, (7, 8, 6), seed)
    theirs = HausdorffDTLoss(include_background=False, softmax=True, to_onehot_y=True, alpha=1.5)(
        logits, target[:, None]
    )
    ours = hausdorff_loss(logits.softmax(1)[:, 1:], reference(target, k), spacing=(1, 1, 1), alpha=1.5)
    torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=1e-4)


@ALIKE
@given(st.integers(1, 2), st.integers(2, 3), st.sampled_from([(9, 8), (7, 8, 6)]), st.integers(0, 50))
def test_cldice_equals_monais(n, k, shape, seed):
    from monai.losses import SoftclDiceLoss

    logits, target = drawn(n, k, shape, seed)
    p = logits.softmax(1)[:, 1:]
    theirs = SoftclDiceLoss(iter_=2, smooth=1e-8)(p, one_hot(target, k)[:, 1:])
    torch.testing.assert_close(cldice_loss(p, reference(target, k), iterations=2), theirs, atol=1e-5, rtol=1e-4)


# By hand


def test_dice_by_hand():
    # Foreground probabilities 1, 1, 0, 0 against labels 1, 0, 1, 0: overlap 1, sizes 2 and 2.
    p = torch.tensor([1.0, 1, 0, 0]).reshape(1, 1, 4)
    loss = soft_dice_loss(p, torch.tensor([[1, 0, 1, 0]]), ((1,),), batch_dice=False, smooth=0)
    assert float(loss) == -0.5


def test_focal_tversky_by_hand():
    # One voxel in both, one false positive, two false negatives: 1 / (1 + 0.3 + 1.4), and the power of what is missing.
    p = torch.tensor([1.0, 1, 0, 0, 0]).reshape(1, 1, 5)
    target = torch.tensor([[1, 0, 1, 1, 0]])
    value = tversky_loss(p, reference(target, 2), false_positives=0.3, false_negatives=0.7, exponent=0.75, smooth=0)
    assert float(value) == pytest.approx((1 - 1 / 2.7) ** 0.75)


def test_cross_entropy_with_class_weights_by_hand():
    """Three voxels of weights 1, 4 and 4: their losses in that proportion."""
    logits = torch.tensor([[2.0, 0.0, 1.0], [0.0, 1.0, 3.0]]).reshape(1, 2, 3)
    target = torch.tensor([[0, 1, 1]])
    losses = [-F.log_softmax(logits[0, :, i], 0)[t] for i, t in enumerate([0, 1, 1])]
    expected = (losses[0] + 4 * losses[1] + 4 * losses[2]) / 9
    torch.testing.assert_close(cross_entropy(logits, reference(target, 2), weights=torch.tensor([1.0, 4.0])), expected)
    torch.testing.assert_close(F.cross_entropy(logits, target, torch.tensor([1.0, 4.0])), expected)


def test_the_weighted_softmax_of_sparse_annotation_by_hand():
    """Çiçek et al.: voxels that nobody labelled weigh 0, the background less than the tubule."""
    logits = torch.tensor([[0.0, 2.0, 5.0, 0.0], [1.0, 0.0, -5.0, 1.0]]).reshape(1, 2, 4)
    target = torch.tensor([[1, 0, 2, 2]])
    labels = Labels.plain({"tubule": 1}, ignore=3)
    sparse = Loss(labels, (term("cross_entropy", class_weights={"background": 0.1, "tubule": 1.0}),))
    inside, outside = -F.log_softmax(logits[0, :, 0], 0)[1], -F.log_softmax(logits[0, :, 1], 0)[0]
    torch.testing.assert_close(sparse(logits, target), (inside + 0.1 * outside) / 1.1)
    logits.requires_grad_()
    sparse(logits, target).backward()
    assert not logits.grad[..., 2:].any()


def test_binary_cross_entropy_of_weighted_regions_by_hand():
    logits, target = torch.tensor([[[0.5], [-1.0]]]), torch.tensor([[1]])
    whole, core = F.softplus(torch.tensor(-0.5)), F.softplus(torch.tensor(-1.0))
    weighted = Loss(REGIONS, (term("cross_entropy", class_weights={"core": 3.0}),))
    torch.testing.assert_close(weighted(logits, target), (whole + 3 * core) / 4)


def test_top_k_by_hand():
    logits = torch.zeros(1, 2, 4)
    logits[0, 1] = torch.tensor([0.0, 1.0, 2.0, 3.0])
    target = torch.zeros((1, 4), dtype=torch.long)
    losses = F.softplus(logits[0, 1])
    torch.testing.assert_close(top_k_cross_entropy(logits, reference(target, 2), share=0.5), losses[2:].mean())
    torch.testing.assert_close(top_k_cross_entropy(logits, reference(target, 2), share=1.0), losses.mean())
    target[0, 3] = 2
    # Of the three that count, two.
    kept = top_k_cross_entropy(logits, reference(target, 2, ignore=2), share=0.67)
    torch.testing.assert_close(kept, losses[1:3].mean())


def test_signed_distances_by_hand():
    """A line of voxels, the two last of which are inside: 2 and 1 before, 0 on the surface, -1 behind it."""
    target = torch.tensor([[[0, 0, 1, 1]]])
    for place, distance in enumerate([2.0, 1.0, 0.0, -1.0]):
        p = torch.zeros(1, 1, 1, 4)
        p[..., place] = 1
        assert float(boundary_loss(p, reference(target, 2), spacing=(1, 1))) == pytest.approx(distance / 4)
    # Along an axis three times as coarse as the finest one a step counts three times.
    p = torch.zeros(1, 1, 1, 4)
    p[..., 0] = 1
    assert float(boundary_loss(p, reference(target, 2), spacing=(0.5, 1.5))) == pytest.approx(6 / 4)


def test_a_tube_whose_centre_line_is_broken_costs_more_than_a_thin_one():
    tube = torch.zeros(1, 1, 9, 21)
    tube[..., 3:6, :] = 1
    target = tube[:, 0].long()
    thin, broken = torch.zeros_like(tube), tube.clone()
    thin[..., 4, :] = 1
    broken[..., 9:12] = 0
    losses = {name: float(cldice_loss(p, reference(target, 2))) for name, p in (("thin", thin), ("broken", broken))}
    dice = {
        name: float(soft_dice_loss(p, target, ((1,),), batch_dice=True))
        for name, p in (("thin", thin), ("broken", broken))
    }
    assert losses["thin"] < 0.02 < 0.05 < losses["broken"]
    assert dice["thin"] > dice["broken"]


# What every term keeps


@pytest.mark.parametrize("labels", [PLAIN, REGIONS], ids=["labels", "regions"])
@pytest.mark.parametrize("name", NAMES)
class TestEveryTerm:
    def loss(self, name, labels, **options):
        return Loss(labels, (term(name, **options),))

    def test_gradients_are_right(self, name, labels):
        logits, target = drawn(2, labels.n_outputs, (4, 5), 0, dtype=torch.float64)
        target[:, 0] = labels.ignore_index
        loss = self.loss(name, labels)
        assert torch.autograd.gradcheck(lambda x: loss(x, target), logits.requires_grad_(), eps=1e-7, atol=1e-5)

    def test_ignored_voxels_have_no_gradient(self, name, labels):
        logits, target = drawn(2, labels.n_outputs, (4, 5, 6), 3)
        target = target.clamp_max(2)
        target[:, 2:] = labels.ignore_index
        logits.requires_grad_()
        self.loss(name, labels)(logits, target).backward()
        assert not logits.grad[:, :, 2:].any()
        assert logits.grad[:, :, :2].any()

    def test_a_patch_without_a_labelled_voxel_teaches_nothing(self, name, labels):
        logits = torch.randn(1, labels.n_outputs, 6, 6, 6, requires_grad=True)
        value = self.loss(name, labels)(logits, torch.full((1, 6, 6, 6), labels.ignore_index))
        value.backward()
        assert value.isfinite()
        assert not logits.grad.any()

    @pytest.mark.parametrize("level", [-60.0, 0.0, 60.0])
    def test_absent_and_filling_labels_are_finite(self, name, labels, level):
        """However sure the network is, right or wrong."""
        for value in (0, 1, 2):
            logits = torch.zeros(2, labels.n_outputs, 5, 6, 5)
            logits[:, -1] = level
            logits.requires_grad_()
            loss = self.loss(name, labels)(logits, torch.full((2, 5, 6, 5), value))
            loss.backward()
            assert loss.isfinite()
            assert logits.grad.isfinite().all()

    def test_a_perfect_answer_costs_least(self, name, labels):
        target = torch.zeros((1, 8, 8, 8), dtype=torch.long)
        target[:, 2:6, 2:6, 2:6] = 1
        target[:, 3:5, 3:5, 3:5] = 2
        channels = [target > 0, target == 2] if labels.regions else [target == i for i in range(3)]
        perfect = torch.stack(channels, 1).float() * 40 - 20
        loss, smallest = self.loss(name, labels), float("inf")
        for seed in range(5):
            generator = torch.Generator().manual_seed(seed)
            smallest = min(smallest, float(loss(torch.randn(perfect.shape, generator=generator), target)))
        assert float(loss(perfect, target)) < smallest

    def test_half_precision_is_summed_in_single(self, name, labels):
        logits, target = drawn(1, labels.n_outputs, (6, 6, 6), 1)
        rounded = logits.bfloat16()
        value = self.loss(name, labels)(rounded, target)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, self.loss(name, labels)(rounded.float(), target))


def test_documented_values_of_absent_labels():
    """docs/stages/training.md lists these."""
    empty = torch.zeros((1, 6, 6, 6), dtype=torch.long)
    sure = torch.zeros(1, 2, 6, 6, 6)
    sure[:, 0] = 60
    labels = Labels.plain({"a": 1})
    values = {name: float(Loss(labels, (term(name),))(sure, empty)) for name in NAMES}
    expected = dict.fromkeys(NAMES, 0.0) | {"dice": -1.0}
    assert values == pytest.approx(expected, abs=1e-4)


def test_ignored_voxels_enter_no_mean():
    """As if the image ended where the labels do; of terms that know no neighbours."""
    for labels in (PLAIN, REGIONS):
        logits, target = drawn(2, labels.n_outputs, (4, 5, 6), 3)
        target = target.clamp_max(2)
        target[:, 2:] = labels.ignore_index
        whole = labels.model_copy(update={"ignore": None})
        for name in ("dice", "cross_entropy", "focal", "top_k", "tversky", "generalised_dice"):
            for batch in (False, True):
                one, other = (Loss(which, (term(name),), batch_dice=batch) for which in (labels, whole))
                torch.testing.assert_close(one(logits, target), other(logits[:, :, :2], target[:, :2]))


def test_terms_of_distances_do_not_see_ignored_voxels():
    """Neither what is predicted there nor how many they are."""
    logits, target = drawn(1, 3, (8, 8, 8), 3)
    # Nothing reaches the border of what is labelled, which would be a surface.
    target = target.clamp_max(2)
    target[:, 3:5] = 0
    logits[:, 0, 3:5] += 30
    target[:, 5:] = PLAIN.ignore_index
    whole = PLAIN.model_copy(update={"ignore": None})
    for name in ("boundary", "hausdorff"):
        value = Loss(PLAIN, (term(name),))(logits, target)
        other = logits.clone()
        other[:, :, 5:] = torch.randn(1, 3, 3, 8, 8) * 5
        torch.testing.assert_close(Loss(PLAIN, (term(name),))(other, target), value)
        torch.testing.assert_close(Loss(whole, (term(name),))(logits[:, :, :5], target[:, :5]), value)


# Joined


def test_terms_are_added_with_their_weights():
    logits, target = drawn(2, 3, (4, 8, 8), 1)
    parts = [term("dice", batch=True), term("focal", gamma=1.0), term("tversky")]
    values = [float(Loss(PLAIN, (t,))(logits, target)) for t in parts]
    joined = Loss(
        PLAIN, (parts[0], parts[1].model_copy(update={"weight": 2.0}), parts[2].model_copy(update={"weight": 0.5}))
    )
    assert float(joined(logits, target)) == pytest.approx(values[0] + 2 * values[1] + 0.5 * values[2], abs=1e-6)


def test_the_default_is_dice_and_cross_entropy_as_planned():
    logits, target = drawn(3, 3, (4, 8, 8), 1)
    for batch in (False, True):
        expected = soft_dice_loss(logits.softmax(1)[:, 1:], target, members(3), batch_dice=batch) + F.cross_entropy(
            logits, target
        )
        torch.testing.assert_close(Loss(PLAIN, batch_dice=batch)(logits, target), expected)
    assert [t.name for t in DEFAULT_LOSS] == ["dice", "cross_entropy"]


def test_heads_are_weighed_and_shapes_are_of_full_resolution():
    logits, target = drawn(2, 3, (4, 8, 8), 1)
    low = torch.randn(2, 3, 2, 4, 4)
    dice, boundary = Loss(PLAIN), Loss(PLAIN, (term("boundary"),))
    expected = 0.75 * dice(logits, target) + 0.25 * dice(low, shrink_labels(target, (2, 4, 4)))
    torch.testing.assert_close(dice.over_heads([logits, low], target, [0.75, 0.25]), expected)
    torch.testing.assert_close(boundary.over_heads([logits, low], target, [0.75, 0.25]), boundary(logits, target))


def test_head_weights_are_halved_and_sum_to_one():
    assert Segmenter(2, (1, 1)).head_weights(3) == pytest.approx([4 / 7, 2 / 7, 1 / 7])
    for name in ("u2net", "danet"):
        network = build_network(spec_of(name, (64, 64), width=0.1), 1, 2)
        heads = network.supervised(torch.zeros(2, 1, 64, 64))
        assert len(heads) == {"u2net": 7, "danet": 3}[name]
        assert {tuple(h.shape) for h in heads} == {(2, 2, 64, 64)}
        assert network.head_weights(len(heads)) == pytest.approx([1 / len(heads)] * len(heads))


def test_labels_are_shrunk_by_the_nearest_voxel():
    target = torch.arange(8).reshape(1, 8)[:, None, None, :].expand(1, 2, 2, 8)
    assert shrink_labels(target, (1, 1, 4))[0, 0, 0].tolist() == [1, 3, 5, 7]


def test_a_term_that_is_not_known_or_given_wrong_values_is_refused():
    for wrong in (
        {"name": "dicee"},
        {"name": "focal", "gamma": -1},
        {"name": "dice", "gamma": 1},
        {"name": "top_k", "share": 0},
    ):
        with pytest.raises(ValidationError):
            TypeAdapter(LossTerm).validate_python(wrong)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NAMES)
def test_a_step_on_the_gpu_is_finite(name):
    network = to_device(build_network(spec_of("plain_unet"), 1, 3), torch.device("cuda"))
    x = torch.randn(2, 1, 16, 16, 16, device="cuda").contiguous(memory_format=fast_memory_format(3))
    target = torch.zeros((2, 16, 16, 16), dtype=torch.long, device="cuda")
    heads = network.supervised(x)
    loss = Loss(PLAIN, (term(name),)).over_heads(heads, target, network.head_weights(len(heads)))
    loss.backward()
    assert np.isfinite(float(loss.detach()))
