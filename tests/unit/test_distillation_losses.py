"""Losses of distillation against values computed by hand, and the law that they are 0 where student and teacher are alike."""

from itertools import product
from math import log

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from segpipe.distillation.critic import Critic, SelfAttention, holistic_loss
from segpipe.distillation.features import attention_loss, flow_loss, hide, hint_loss
from segpipe.distillation.relations import (
    _nearest,
    node_edge,
    pair_loss,
    region_loss,
    relational_loss,
    similarity_loss,
)
from segpipe.distillation.response import (
    channel_loss,
    correlation_loss,
    log_probabilities,
    present_classes,
    probabilities_of,
    scores_of,
    voxel_loss,
)

SHAPES = [(12, 10), (6, 8, 10)]
CRITIC_SEED = 7


def logits(shape, n=3, batch=2, seed=0, scale=2.0):
    return scale * torch.randn(batch, n, *shape, generator=torch.Generator().manual_seed(seed))


def both(shape, n=3, regions=False):
    return tuple(log_probabilities(logits(shape, n, seed=s), regions=regions) for s in (0, 1))


def labels_of(x, n):
    return torch.randint(0, n, (x.shape[0], *x.shape[2:]), generator=torch.Generator().manual_seed(5))


def own_critic(s, t, shape):
    torch.manual_seed(CRITIC_SEED)
    critic = Critic(1 + s.shape[1], shape)
    return holistic_loss(critic, torch.randn(2, 1, *shape), s.exp(), t.exp())


EVERY = {
    "voxel": lambda s, t, shape: voxel_loss(s, t),
    "voxel, hot": lambda s, t, shape: voxel_loss(s, t, temperature=3.0),
    "voxel, by class": lambda s, t, shape: voxel_loss(s, t, by_class=True),
    "channel": lambda s, t, shape: channel_loss(s, t),
    "dist": lambda s, t, shape: correlation_loss(s, t),
    "pair": lambda s, t, shape: pair_loss(s, t),
    "pair, near": lambda s, t, shape: pair_loss(s, t, node=2, nearest=4),
    "holistic": own_critic,
    "hint": lambda s, t, shape: hint_loss(s, t),
    "attention": lambda s, t, shape: attention_loss(s, t),
    "fsp": lambda s, t, shape: flow_loss((s, s[:, :2]), (t, t[:, :2])),
    "relational": lambda s, t, shape: relational_loss(s, t),
    "similarity": lambda s, t, shape: similarity_loss(s, t),
    "region": lambda s, t, shape: region_loss(s, t, labels_of(s, 3), 3),
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EVERY)
def test_is_nothing_where_both_say_the_same_and_something_where_not(name, shape):
    s, t = both(shape)
    assert float(EVERY[name](t, t, shape).detach()) == pytest.approx(0, abs=2e-6)
    assert abs(float(EVERY[name](s, t, shape).detach())) > 1e-6


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("name", EVERY)
def test_computes_in_float32_and_teaches_the_student_only(name, shape):
    s, t = (x.bfloat16().requires_grad_() for x in both(shape))
    value = EVERY[name](s, t.detach(), shape)
    assert value.dtype == torch.float32
    value.backward()
    assert float(s.grad.abs().sum()) > 0
    assert t.grad is None


@pytest.mark.parametrize("name", ["voxel", "voxel, hot", "voxel, by class", "channel", "dist"])
@pytest.mark.parametrize("shape", SHAPES)
def test_a_mean_does_not_grow_with_the_batch_the_patch_or_what_is_in_it_twice(name, shape):
    s, t = both(shape)
    once = float(EVERY[name](s, t, shape))
    assert float(EVERY[name](torch.cat((s, s)), torch.cat((t, t)), shape)) == pytest.approx(once, rel=1e-5)
    if name != "channel":
        # A channel's distribution over twice as many places is another one by the same ratio: also the same value.
        twice = [torch.cat((x, x), dim=-1) for x in (s, t)]
        assert float(EVERY[name](*twice, shape)) == pytest.approx(once, rel=1e-5)


def test_voxel_is_the_divergence_by_hand():
    s, t = torch.tensor([0.5, 0.3, 0.2]), torch.tensor([0.7, 0.2, 0.1])
    by_hand = sum(float(b) * log(float(b / a)) for a, b in zip(s, t, strict=True))
    shaped = [scores_of(x).reshape(1, 3, 1, 1).expand(2, 3, 4, 5) for x in (s, t)]
    assert float(voxel_loss(*shaped)) == pytest.approx(by_hand, rel=1e-5)
    # torch's batch mean divides by the samples only: it is larger by the voxels of a patch.
    assert float(F.kl_div(*shaped, log_target=True, reduction="batchmean")) == pytest.approx(20 * by_hand, rel=1e-4)
    # At a temperature: probabilities to its inverse power, and the squared temperature before it.
    hot = [x.sqrt() / x.sqrt().sum() for x in (s, t)]
    hot_by_hand = 4 * sum(float(b) * log(float(b / a)) for a, b in zip(*hot, strict=True))
    assert float(voxel_loss(*shaped, temperature=2.0)) == pytest.approx(hot_by_hand, rel=1e-5)


def test_regions_are_each_a_yes_or_no():
    s, t = torch.tensor([0.5, 0.9]), torch.tensor([0.8, 0.9])
    by_hand = (0.8 * log(0.8 / 0.5) + 0.2 * log(0.2 / 0.5)) / 2
    shaped = [scores_of(x, regions=True).reshape(1, 2, 1, 1, 1).expand(1, 2, 3, 3, 3) for x in (s, t)]
    assert float(voxel_loss(*shaped, regions=True)) == pytest.approx(by_hand, rel=1e-4)
    softmax_of_both = voxel_loss(*shaped)
    assert abs(float(softmax_of_both) - by_hand) > 0.01
    # At a temperature logits are divided by it: odds to its inverse power.
    hot = [(x / (1 - x)).sqrt() / (1 + (x / (1 - x)).sqrt()) for x in (s, t)]
    by_hand = 4 * sum(
        float(b * (b / a).log() + (1 - b) * ((1 - b) / (1 - a)).log()) / 2 for a, b in zip(*hot, strict=True)
    )
    assert float(voxel_loss(*shaped, regions=True, temperature=2.0)) == pytest.approx(by_hand, rel=1e-4)


@pytest.mark.parametrize("regions", [False, True])
def test_a_student_that_is_surest_of_a_wrong_answer_learns_most(regions):
    teacher = scores_of(torch.tensor([0.05, 0.9, 0.05]), regions=regions).reshape(1, 3, 1, 1)
    slopes = []
    for sure in (1.0, 5.0, 25.0, 60.0):
        student = torch.tensor([sure, -sure * regions, 0.0]).reshape(1, 3, 1, 1).requires_grad_()
        voxel_loss(student, teacher, regions=regions).backward()
        slopes.append(-float(student.grad[0, 1]))
    assert slopes == sorted(slopes)
    assert slopes[-1] == pytest.approx(0.9 / (3 if regions else 1), rel=1e-3)
    # By torch's own, of the same numbers.
    student = torch.tensor([25.0, 0.0, 0.0], requires_grad=True)
    F.cross_entropy(student[None], torch.tensor([[0.05, 0.9, 0.05]])).backward()
    assert float(student.grad[1]) == pytest.approx(-0.9, rel=1e-3)


def test_what_a_teacher_stores_as_nothing_stays_a_number():
    for regions in (False, True):
        scores = scores_of(torch.tensor([0.0, 1.0, 0.0]).reshape(1, 3, 1, 1), regions=regions)
        assert bool(torch.isfinite(scores).all())
        assert probabilities_of(scores, regions=regions)[0, :, 0, 0].tolist() == pytest.approx([0, 1, 0], abs=1e-6)
    # Scores are logits to a constant, so that a temperature softens them as it does logits.
    p = torch.tensor([0.7, 0.2, 0.1]).reshape(1, 3, 1, 1)
    soft = probabilities_of(scores_of(p), temperature=2.0)
    torch.testing.assert_close(soft, p.sqrt() / p.sqrt().sum(1, keepdim=True))


def test_by_class_a_small_structure_counts_like_the_background():
    teacher, student = torch.zeros(1, 2, 10, 10), torch.zeros(1, 2, 10, 10)
    teacher[:, 0] = 4.0
    teacher[0, :, 0, 0] = torch.tensor([-4.0, 4.0])
    t, s = teacher, student
    small = float(voxel_loss(s[..., :1, :1], t[..., :1, :1]))
    other = float(voxel_loss(s[..., 1:, :], t[..., 1:, :]))
    assert float(voxel_loss(s, t, by_class=True)) == pytest.approx((small + other) / 2, rel=1e-5)
    assert float(voxel_loss(s, t)) == pytest.approx((small + 99 * other) / 100, rel=1e-5)


def test_voxels_that_do_not_count_change_nothing():
    s, t = both((6, 5))
    kept = torch.ones(2, 6, 5, dtype=torch.bool)
    kept[:, 3:] = False
    for loss in (voxel_loss, channel_loss, correlation_loss):
        spoilt = s.clone()
        spoilt[:, :, 3:] = log_probabilities(torch.randn(2, 3, 3, 5))
        assert float(loss(s, t, kept=kept)) == pytest.approx(float(loss(spoilt, t, kept=kept)), rel=1e-5)
        cut = float(loss(s[:, :, :3], t[:, :, :3]))
        assert float(loss(s, t, kept=kept)) == pytest.approx(cut, rel=1e-4)


def test_channel_is_the_divergence_of_places_by_hand():
    s, t = torch.tensor([[0.0, 1.0, 2.0, 0.5]]), torch.tensor([[1.0, 0.0, 3.0, 0.5]])
    p, q = (torch.softmax(x / 4, dim=1)[0] for x in (t, s))
    by_hand = 16 * float((p * (p / q).log()).sum())
    shaped = [x.reshape(1, 1, 2, 2) for x in (s, t)]
    assert float(channel_loss(*shaped)) == pytest.approx(by_hand, rel=1e-5)


def test_a_class_that_a_patch_has_nothing_of_is_noise_and_does_not_count():
    teacher = logits((6, 5))
    teacher[0, 2] = -20.0
    t = log_probabilities(teacher)
    present = present_classes(t, regions=False)
    assert present.tolist() == [[True, True, False], [True, True, True]]
    s = log_probabilities(logits((6, 5), seed=1))
    noisy = s.clone()
    noisy[0, 2] += torch.randn(6, 5)
    assert float(channel_loss(noisy, t, present=present)) == pytest.approx(float(channel_loss(s, t, present=present)))
    assert float(channel_loss(noisy, t)) != pytest.approx(float(channel_loss(s, t)))


def test_dist_is_one_minus_the_correlations_by_hand():
    s, t = both((3, 2), n=4)
    p, q = s.exp(), t.exp()
    over_classes = [
        1 - float(torch.corrcoef(torch.stack((p[n, :, y, x], q[n, :, y, x])))[0, 1])
        for n, y, x in product(range(2), range(3), range(2))
    ]
    there = present_classes(t, regions=False)
    over_voxels = [
        1 - float(torch.corrcoef(torch.stack((p[n, k].flatten(), q[n, k].flatten())))[0, 1])
        for n, k in product(range(2), range(4))
        if there[n, k]
    ]
    by_hand = sum(over_classes) / len(over_classes) + 0.5 * sum(over_voxels) / len(over_voxels)
    assert float(correlation_loss(s, t, within=0.5)) == pytest.approx(by_hand, rel=1e-4)
    # A student that is surer or less sure by a linear map is as good: that is what sets DIST apart from divergence.
    mild = (0.5 * q + 0.5 / 4).log()
    assert float(correlation_loss(mild, t)) == pytest.approx(0, abs=1e-5)
    # Over two classes a correlation is 1 or -1 and teaches nothing: it is not counted.
    two = [x[:, :2] for x in (s, t)]
    assert float(correlation_loss(*two, within=0.0)) == 0
    assert float(correlation_loss(*two)) > 0


def test_pair_is_the_difference_of_cosines_by_hand():
    s, t = torch.randn(1, 3, 4, 4), torch.randn(1, 5, 4, 4)
    nodes = [F.avg_pool2d(x, 2)[0].reshape(x.shape[1], 4).T for x in (s, t)]
    total = 0.0
    for i, j in product(range(4), repeat=2):
        a, b = (float(F.cosine_similarity(n[i], n[j], dim=0)) for n in nodes)
        total += (a - b) ** 2
    assert float(pair_loss(s, t, node=2)) == pytest.approx(total / 16, rel=1e-4)
    # Twice as fine a student, and any number of channels: both are pooled to the same nodes.
    fine = F.interpolate(s, scale_factor=2, mode="nearest")
    assert float(pair_loss(fine, t, node=2)) == pytest.approx(total / 16, rel=1e-4)


def test_pair_with_a_range_holds_each_node_against_its_nearest():
    among = _nearest((3, 3), 5)
    assert set(among[4].tolist()) == {4, 1, 3, 5, 7}
    assert among[:, 0].tolist() == list(range(9))
    assert 0 in among[1].tolist()
    assert 8 not in among[0].tolist()
    s, t = torch.randn(2, 2, 6, 6), torch.randn(2, 2, 6, 6)
    assert float(pair_loss(s, t, node=2, nearest=9)) == pytest.approx(float(pair_loss(s, t, node=2)))
    a, b = (F.normalize(F.avg_pool2d(x, 2).flatten(2).transpose(1, 2), dim=2) for x in (s, t))
    by_hand = [
        (float(a[n, i] @ a[n, j]) - float(b[n, i] @ b[n, j])) ** 2
        for n, i in product(range(2), range(9))
        for j in among[i].tolist()
    ]
    assert float(pair_loss(s, t, node=2, nearest=5)) == pytest.approx(sum(by_hand) / len(by_hand), rel=1e-4)


def test_nodes_stay_few_on_large_maps():
    assert node_edge((8, 8, 8)) == 1
    assert node_edge((64, 64, 64)) == 8
    assert node_edge((56, 64, 56)) == 8
    assert node_edge((22, 22)) == 1


def test_hint_attention_and_flow_by_hand():
    s, t = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert float(hint_loss(s, t)) == pytest.approx(float((s - t).square().sum()) / s.numel(), rel=1e-5)
    maps = [F.normalize(x.square().mean(1).flatten(1), dim=1) for x in (s, t)]
    assert float(attention_loss(s, t)) == pytest.approx(float((maps[0] - maps[1]).square().sum()) / 2, rel=1e-4)
    # Attention needs no channels in common, and grows at most to 2 (maps have no negative values).
    assert 0 < float(attention_loss(torch.randn(2, 7, 4, 4), t)) <= 2
    flows = [torch.einsum("ncyx,ndyx->ncd", x, x[:, :2]) / 16 for x in (s, t)]
    by_hand = float((flows[0] - flows[1]).square().mean())
    assert float(flow_loss((s, s[:, :2]), (t, t[:, :2]))) == pytest.approx(by_hand, rel=1e-4)


def test_a_map_on_another_grid_is_brought_to_the_teachers():
    t = torch.randn(1, 2, 4, 4, 4)
    s = F.interpolate(t, scale_factor=2, mode="nearest")
    assert float(hint_loss(s, t)) == pytest.approx(0, abs=1e-10)
    assert float(attention_loss(s, t)) == pytest.approx(0, abs=1e-10)
    assert float(relational_loss(s, t, parts=2)) == pytest.approx(0, abs=1e-6)
    assert float(similarity_loss(s, t, parts=2)) == pytest.approx(0, abs=1e-6)


def test_relations_do_not_change_when_the_space_is_turned_or_stretched():
    t = torch.randn(2, 4, 6, 6)
    turn = torch.linalg.qr(torch.randn(4, 4)).Q
    turned = torch.einsum("dc,ncyx->ndyx", turn, t)
    assert float(relational_loss(3 * turned, t)) == pytest.approx(0, abs=1e-5)
    assert float(similarity_loss(3 * turned, t)) == pytest.approx(0, abs=1e-6)
    assert float(pair_loss(3 * turned, t)) == pytest.approx(0, abs=1e-6)


def test_relational_by_hand():
    s, t = torch.randn(1, 2, 1, 3), torch.randn(1, 2, 1, 3)
    rows = [x[0, :, 0].T for x in (s, t)]
    relative = []
    for points in rows:
        distances = torch.cdist(points, points)
        relative.append(distances / (distances.sum() / 6))
    by_hand = float(F.smooth_l1_loss(*relative))
    angles = []
    for points in rows:
        cosines = [
            float(F.cosine_similarity(points[j] - points[i], points[k] - points[i], dim=0)) if i not in (j, k) else 0.0
            for i, j, k in product(range(3), repeat=3)
        ]
        angles.append(torch.tensor(cosines))
    by_hand += 2 * float(F.smooth_l1_loss(*angles))
    assert float(relational_loss(s, t)) == pytest.approx(by_hand, rel=1e-3)


def test_similarity_by_hand():
    s, t = torch.randn(2, 2, 1, 2), torch.randn(2, 5, 1, 2)
    grams = []
    for x in (s, t):
        rows = torch.cat([x[n, :, 0].T for n in range(2)])
        grams.append(F.normalize(rows @ rows.T, dim=1))
    assert float(similarity_loss(s, t)) == pytest.approx(float((grams[0] - grams[1]).square().sum()) / 16, rel=1e-4)


def test_regions_that_are_not_there_do_not_count():
    s, t = torch.randn(1, 3, 4, 4), torch.randn(1, 3, 4, 4)
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[:, 2:] = 2
    means = [torch.stack([x[0, :, :2].flatten(1).mean(1), x[0, :, 2:].flatten(1).mean(1)]) for x in (s, t)]
    cosines = [F.normalize(m, dim=1) @ F.normalize(m, dim=1).T for m in means]
    by_hand = float((cosines[0] - cosines[1]).square().mean())
    # Label 1 has no voxel; of five labels three have none.
    for n_labels in (3, 5):
        assert float(region_loss(s, t, labels, n_labels)) == pytest.approx(by_hand, rel=1e-4)
    assert float(region_loss(s[..., :2, :2], t, labels, 3)) >= 0


def test_hidden_positions_are_hidden_in_every_channel():
    x = torch.ones(2, 3, 20, 20)
    hidden = hide(x, 0.65, torch.Generator().manual_seed(0))
    assert bool((hidden[:, :1] == hidden).all())
    assert float((hidden == 0).float().mean()) == pytest.approx(0.65, abs=0.05)
    assert float((hide(x, 0.0, torch.Generator()) - x).abs().max()) == 0


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_sure_teachers_of_half_precision_give_finite_losses_and_gradients(temperature):
    teacher = 60 * torch.sign(logits((4, 5, 3))).half()
    student = (-60 * torch.sign(logits((4, 5, 3)))).half().requires_grad_()
    for regions in (False, True):
        t, s = teacher, student
        logs = [log_probabilities(x, regions=regions) for x in (s, t)]
        total = voxel_loss(s, t, temperature=temperature, regions=regions, by_class=True) + channel_loss(*logs)
        total = total + correlation_loss(s, t, temperature=temperature, regions=regions) + pair_loss(*logs)
        assert bool(torch.isfinite(total))
        (gradient,) = torch.autograd.grad(total, student)
        assert bool(torch.isfinite(gradient).all())


# The critic


@pytest.mark.parametrize("shape", [(40, 56), (16, 40, 24), (6, 64, 64), (2, 5)])
def test_a_critic_scores_each_sample_by_itself(shape):
    torch.manual_seed(0)
    critic = Critic(3, shape, width=8)
    assert not [m for m in critic.modules() if "Norm" in type(m).__name__]
    x = torch.randn(3, 3, *shape)
    scores = critic(x)
    assert scores.shape == (3,)
    alone = torch.cat([critic(x[n : n + 1]) for n in range(3)])
    torch.testing.assert_close(scores, alone, atol=1e-5, rtol=1e-4)
    if min(shape) >= 16:
        assert sum(isinstance(m, SelfAttention) for m in critic.modules()) == 2


def test_self_attention_adds_nothing_at_first_and_a_mean_over_positions_then():
    torch.manual_seed(0)
    layer = SelfAttention(8, 2)
    x = torch.randn(2, 8, 3, 4)
    torch.testing.assert_close(layer(x), x)
    with torch.no_grad():
        layer.strength.fill_(1.0)
        for conv in (layer.query, layer.key):
            nn.init.zeros_(conv.weight)
            nn.init.zeros_(conv.bias)
    mean = layer.value(x).flatten(2).mean(2)[:, :, None, None]
    torch.testing.assert_close(layer(x), x + mean.expand_as(x), atol=1e-5, rtol=1e-4)


def test_large_patches_are_judged_smaller():
    torch.manual_seed(0)
    critic = Critic(3, (96, 80, 64), width=8)
    images, said = torch.randn(1, 1, 96, 80, 64), torch.rand(1, 2, 96, 80, 64)
    assert Critic.shown(images, said).shape == (1, 3, 64, 64, 64)
    assert critic(Critic.shown(images, said)).shape == (1,)
