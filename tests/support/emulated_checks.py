"""What the emulated accelerator refuses and counts; each in the process that has it."""

import pytest
import torch
from torch import nn

from tests.support.emulated_accelerator import Traffic, accelerator

DEVICE = "emu"


def tensors_of_two_devices_do_not_meet() -> None:
    with accelerator():
        inside, outside = torch.ones(3, device=DEVICE), torch.ones(3)
        for mix in (lambda: inside + outside, lambda: outside + inside, lambda: torch.cat([inside, outside]), lambda: outside.add_(inside)):
            with pytest.raises(RuntimeError, match="at least two devices"):
                mix()
        with pytest.raises(RuntimeError, match="at least two devices"):
            torch.stack([inside[0], outside[0]])
        with pytest.raises(RuntimeError, match="at least two devices"):
            outside[inside.long() - 1]
        with pytest.raises(TypeError, match="numpy"):
            inside.numpy()


def scalars_of_the_host_and_copies_may() -> None:
    with accelerator():
        inside = torch.arange(3.0, device=DEVICE)
        assert (inside * torch.tensor(2.0)).tolist() == [0, 2, 4]
        inside.copy_(torch.ones(3))
        assert inside.cpu().tolist() == [1, 1, 1]
        assert inside[torch.tensor([0, 2])].device.type == DEVICE


def copies_and_waits_are_counted() -> None:
    def counts(traffic: Traffic) -> tuple[int, int, int]:
        found = traffic.counts["to_device"], traffic.counts["to_host"], traffic.counts["waits"]
        traffic.clear()
        return found

    with accelerator() as traffic:
        inside = torch.tensor([1.0, 2.0], device=DEVICE)
        assert counts(traffic) == (1, 0, 0)
        float(inside.sum()), bool(inside.any()), inside[inside > 1], torch.equal(inside, inside), inside.nonzero()
        assert counts(traffic) == (0, 0, 5)
        inside.tolist(), inside.cpu(), inside.to("cpu", torch.float64)
        assert counts(traffic) == (0, 3, 0)
        inside[torch.tensor([0])], inside.copy_(torch.ones(2)), torch.zeros(2).to(DEVICE), torch.as_tensor([1], device=DEVICE)
        assert counts(traffic) == (4, 0, 0)
        (inside * 2).double().square().sum(0), torch.zeros(3, device=DEVICE), inside.to(DEVICE)
        assert counts(traffic) == (0, 0, 0)


def gradients_and_new_data_of_parameters_are_on_the_device() -> None:
    with accelerator():
        linear = nn.Linear(2, 1, bias=False).to(DEVICE)
        linear(torch.ones(1, 2, device=DEVICE)).sum().backward()
        assert linear.weight.grad is not None
        assert (linear.weight.grad.device.type, linear.weight.grad.tolist()) == (DEVICE, [[1, 1]])
        linear.weight.data = torch.zeros(1, 2, device=DEVICE)
        assert linear.weight.tolist() == [[0, 0]]
        with pytest.raises(RuntimeError, match="expected a tensor on emu"):
            linear.weight.data = torch.zeros(1, 2)


CHECKS = [
    tensors_of_two_devices_do_not_meet,
    scalars_of_the_host_and_copies_may,
    copies_and_waits_are_counted,
    gradients_and_new_data_of_parameters_are_on_the_device,
]
