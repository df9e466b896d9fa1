"""What the processes of PyTorch's `torch.distributed` exchange."""

import torch
from torch import distributed

from keras_jointloss._core.backend.replicas import OneDevice, Replicas, RowCounts
from keras_jointloss._core.backend.torch.gradients import custom_gradient


class Processes(Replicas):
    """The processes of `torch.distributed`, each with a loss and a state of its own.

    `DistributedDataParallel` averages their gradients. While Keras builds a model, its tensors have
    no values, and no process sends them.
    """

    custom_gradient = staticmethod(custom_gradient)

    def __init__(self, count: int):
        super().__init__(count, loss_divisor=1)

    def sum(self, x):
        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.all_reduce(x)
        return x

    def state_sum(self, x):
        return self.sum(x)

    def gather(self, tensors: list, own) -> tuple[list, RowCounts]:
        count = len(own)
        if own.device.type == "meta":
            return [x.detach() for x in tensors], RowCounts([count], 0, 0)
        sent = torch.tensor([count], device=own.device)
        received = [torch.zeros_like(sent) for _ in range(self.count)]
        distributed.all_gather(received, sent)
        counts = [int(count) for count in received]
        results = []
        for x in tensors:
            # All processes send the same number of rows.
            padded = x.new_zeros((max(counts), *x.shape[1:]))
            padded[:count] = x.detach()
            parts = [torch.empty_like(padded) for _ in counts]
            distributed.all_gather(parts, padded)
            results.append(torch.cat([x[:n] for x, n in zip(parts, counts, strict=True)]))
        index = distributed.get_rank()
        return results, RowCounts(counts, index, sum(counts[:index]))

    def tensor_of(self, replica: int, x, after):
        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.broadcast(x, replica)
        return x

    def share_loop(self, x) -> bool:
        """Returns whether a gradient may be taken with respect to a tensor.

        One process alone may compute a loss for validation.
        """
        if not torch.is_tensor(x):
            return False
        return x.device.type == "meta" or (torch.is_grad_enabled() and x.requires_grad)


def current_replicas() -> OneDevice:
    """Returns who computes the step: the processes of `torch.distributed`, if there are several."""
    is_on = distributed.is_available() and distributed.is_initialized()
    count = distributed.get_world_size() if is_on else 1
    return Processes(count) if count > 1 else OneDevice()
