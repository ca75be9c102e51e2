"""What the simulated device promises."""

import copy
import io

import numpy as np
import pytest
import torch
from torch import nn

from tests.simulated import device as simulation
from tests.simulated.backend import DeviceTensor


@pytest.mark.parametrize("kind", ["cuda", "xpu", "mps"])
def test_tensors_are_where_they_were_asked_for(simulated, kind):
    with simulated(kind):
        made = (
            torch.zeros(2, 3, device=kind), torch.empty(2, device=kind), torch.arange(3, device=kind),
            torch.eye(2, device=f"{kind}:0"), torch.full((2,), 3.0, device=kind), torch.randn(3, device=kind),
            torch.tensor([1.0], device=kind), torch.ones(2).to(kind), torch.randint(3, (2,), device=kind),
            torch.ones(2).new_zeros(2, device=kind), torch.as_tensor(np.ones(2), dtype=torch.float32, device=kind),
            torch.empty_strided((2, 3), (1, 2), device=kind), torch.linspace(0, 1, 3, device=kind),
        )  # fmt: skip
        assert all(isinstance(x, DeviceTensor) and x.device == torch.device(kind, 0) for x in made)
        assert all(x.cpu().device.type == "cpu" and x.to(kind) is x for x in made)


def test_mps_has_no_float64(simulated):
    with simulated("mps"), pytest.raises(TypeError, match="float64"):
        torch.zeros(2, dtype=torch.float64, device="mps")


def test_a_tensor_of_the_host_does_not_meet_one_of_the_device(simulated):
    with simulated():
        there, here = torch.ones(3, device="cuda"), torch.ones(3)
        for together in (torch.add, torch.dot, lambda a, b: torch.cat((a, b)), lambda a, b: torch.where(a > 0, a, b)):
            with pytest.raises(RuntimeError, match="same device"):
                together(there, here)
        assert float((there * torch.tensor(2.0)).sum()) == 6


@pytest.mark.parametrize(
    "wait",
    [
        lambda x: x.sum().item(), lambda x: bool(x[0] > 1), lambda x: x.nonzero(), lambda x: x[x > 2], lambda x: x.unique(),
        lambda x: x.tolist(), lambda x: x.cpu(), lambda x: torch.ones(6).to("cuda"), lambda x: x[torch.tensor([1])],
        lambda x: torch.cuda.synchronize(), lambda x: torch.ones(6).to("cuda", non_blocking=True),
        lambda x: torch.equal(x, x), lambda x: x.masked_select(x > 1),
    ],
)  # fmt: skip
def test_what_waits_is_noted_with_its_place(simulated, monkeypatch, wait):
    monkeypatch.setattr(simulation, "PACKAGE", "tests/simulated")
    with simulated() as device:
        x = torch.arange(6.0, device="cuda")
        wait(x)
        assert [e.kind for e in device.events] == ["wait"]
        assert "tests/simulated/" in device.events[0].where


def test_what_does_not_wait_is_no_wait(simulated):
    with simulated() as device:
        x = torch.arange(6.0, device="cuda")
        x[x > 2] = 0
        x[1:3] += x[torch.tensor([0, 1]).pin_memory().to("cuda", non_blocking=True)]
        torch.nonzero_static(x, size=3)
        torch.where(x > 1, x, 0.0).masked_fill(x > 2, 1.0)
        assert [e.kind for e in device.events] == ["upload"]


def test_what_is_on_its_way_is_not_there_yet(simulated):
    with simulated():
        first, second = torch.empty(3, pin_memory=True), torch.empty(2, pin_memory=True)
        event = torch.cuda.Event()
        first.copy_(torch.ones(3, device="cuda"), non_blocking=True)
        event.record()
        second.copy_(torch.ones(2, device="cuda"), non_blocking=True)
        assert first.isnan().all()
        event.synchronize()
        assert first.tolist() == [1, 1, 1]
        assert second.isnan().all(), "begun after the event"
        torch.cuda.synchronize()
        assert second.tolist() == [1, 1]
        assert torch.empty_like(torch.ones(2, device="cuda")).isnan().all()


def test_waits_are_told_as_torch_tells_them(simulated):
    with simulated():
        x = torch.ones(2, device="cuda")
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing"):
            x.sum().item()
        torch.cuda.set_sync_debug_mode("warn")
        with pytest.warns(UserWarning, match="synchronizing"):
            x.cpu()
        torch.cuda.set_sync_debug_mode("default")
        assert torch.cuda.get_sync_debug_mode() == 0
        x.cpu()


@pytest.mark.parametrize("given", ["cuda", torch.device("cuda"), 1, "cuda:1", "cpu", None])
def test_torchs_own_checks_of_arguments_are_kept(simulated, given):
    with simulated():
        torch.cuda.set_device(0)
        torch.cuda.set_device("cuda:0")
        with pytest.raises((ValueError, RuntimeError, TypeError)):
            torch.cuda.set_device(given)
        with pytest.raises(TypeError):
            torch.cuda.set_device()
        assert torch.cuda.get_device_name("cuda") == torch.cuda.get_device_name() == "simulated cuda"
        with pytest.raises((ValueError, RuntimeError)):
            torch.cuda.mem_get_info("cpu")


def _network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv3d(1, 4, 3, padding=1), nn.BatchNorm3d(4), nn.LeakyReLU(inplace=True), nn.Dropout3d(0.5),
        nn.ConvTranspose3d(4, 2, 2, 2),
    )  # fmt: skip


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16, torch.float16])
def test_a_step_of_plain_torch_trains_without_a_wait(simulated, precision):
    with simulated() as device:
        net = _network()
        first = net[0].weight
        net = net.to("cuda").to(memory_format=torch.channels_last_3d)
        assert net[0].weight is first
        assert first.is_contiguous(memory_format=torch.channels_last_3d)
        optimizer = torch.optim.AdamW(net.parameters(), fused=True)
        scaler = torch.amp.GradScaler("cuda", enabled=precision == torch.float16)
        before = len(device.events)
        for _ in range(2):
            with torch.autocast("cuda", dtype=precision, enabled=precision != torch.float32):
                logits = net(torch.randn(2, 1, 8, 8, 8, device="cuda"))
                assert (logits.dtype, logits.softmax(1).dtype) == (precision, torch.float32)
            loss = nn.functional.cross_entropy(logits.float(), torch.randint(2, (2, 16, 16, 16), device="cuda"))
            optimizer.zero_grad()
            scaler.scale(loss).backward()
            scaler.unscale_(optimizer)
            nn.utils.clip_grad_norm_(net.parameters(), 1.0)
            scaler.step(optimizer)
            scaler.update()
        assert not device.events[before:]
        file = io.BytesIO()
        torch.save([net.state_dict(), optimizer.state_dict()], file)
        weights, _ = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
        assert all(type(w) is torch.Tensor for w in weights.values())
        copy.deepcopy(net).load_state_dict(weights)


def test_an_error_inside_a_backward_pass_is_raised(simulated):
    with simulated():
        x = torch.ones(1, 1, 4, 4, 4, device="cuda", requires_grad=True)
        torch.use_deterministic_algorithms(True)
        try:
            with pytest.raises(RuntimeError, match="_adaptive_avg_pool3d_backward does not have a deterministic"):
                nn.functional.adaptive_avg_pool3d(x, 2).sum().backward()
        finally:
            torch.use_deterministic_algorithms(False)
        nn.functional.adaptive_avg_pool3d(x, 2).sum().backward()


def test_memory_is_counted_and_ends(simulated):
    with simulated(total_bytes=1000) as device:
        x = torch.zeros(100, device="cuda")
        assert (device.allocated, torch.cuda.mem_get_info()) == (400, (600, 1000))
        view = x[10:]
        assert device.allocated == 400
        with pytest.raises(torch.OutOfMemoryError):
            torch.zeros(200, device="cuda")
        del x, view
        assert (device.allocated, device.peak) == (0, 400)


def test_random_numbers_are_the_devices_own(simulated):
    with simulated():
        state = torch.get_rng_state()
        saved = torch.cuda.get_rng_state_all()
        first = torch.rand(3, device="cuda").tolist()
        assert torch.equal(state, torch.get_rng_state())
        torch.cuda.set_rng_state_all(saved)
        assert torch.rand(3, device="cuda").tolist() == first
        assert torch.rand(3, device="cuda", generator=torch.Generator("cuda").manual_seed(1)).tolist() != first
        with pytest.raises(RuntimeError, match="generator"):
            torch.rand(3, device="cuda", generator=torch.Generator())
