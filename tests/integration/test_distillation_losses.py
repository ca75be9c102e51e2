"""Losses of distillation against values computed by hand, and the law that they are 0 where student and teacher are alike."""

import pytest
import torch

from segpipe.distillation.critic import Critic, critic_loss, holistic_loss


def test_the_critic_looks_at_the_image_and_learns_who_is_who_with_slopes_of_one():
    torch.manual_seed(0)
    shape, critic = (16, 16), Critic(3, (16, 16), width=8)
    optimizer = torch.optim.Adam(critic.parameters(), lr=1e-3, betas=(0.0, 0.9))

    def batch(seed):
        generator = torch.Generator().manual_seed(seed)
        images = torch.randn(4, 1, *shape, generator=generator)
        right = torch.cat((images > 0, images <= 0), dim=1).float()
        return images, right

    for step in range(90):
        images, right = batch(step)
        # The student's maps are as good as the teacher's, of another image: only one who sees the image can tell.
        loss = critic_loss(
            critic, images, right.roll(1, 0), right, penalty=10.0, generator=torch.Generator().manual_seed(step)
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    images, right = batch(10_000)
    assert float(holistic_loss(critic, images, right.roll(1, 0), right).detach()) > 0.5
    between = (0.5 * right + 0.5 * right.roll(1, 0)).requires_grad_()
    (slopes,) = torch.autograd.grad(critic(Critic.shown(images, between)).sum(), between)
    assert float(slopes.flatten(1).norm(dim=1).mean()) == pytest.approx(1, abs=0.35)
