"""What the processes of PyTorch's `torch.distributed` exchange."""

from keras_jointloss._core.backend.gradients import of_keras
from keras_jointloss._core.backend.replicas import Replicas, RowCounts


def count_ranks() -> int:
    """Returns the number of processes; 1 without `torch.distributed`."""
    from torch import distributed

    is_on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_on else 1


class Processes(Replicas):
    """The processes of `torch.distributed`, each with a loss and a state of its own.

    `DistributedDataParallel` averages their gradients. While Keras builds a model, its tensors have
    no values, and no process sends them.
    """

    def __init__(self, count: int):
        super().__init__(count, loss_divisor=1)

    @staticmethod
    def custom_gradient(compute, *inputs):
        return of_keras(compute, inputs)

    def sum(self, x):
        from torch import distributed

        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.all_reduce(x)
        return x

    def state_sum(self, x):
        return self.sum(x)

    def gather(self, tensors: list, own) -> tuple[list, RowCounts]:
        import torch
        from torch import distributed

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
        from torch import distributed

        x = x.detach().clone()
        if x.device.type != "meta":
            distributed.broadcast(x, replica)
        return x

    def share_loop(self, x) -> bool:
        """Returns whether a gradient may be taken with respect to a tensor.

        One process alone may compute a loss for validation.
        """
        import torch

        if not torch.is_tensor(x):
            return False
        return x.device.type == "meta" or (torch.is_grad_enabled() and x.requires_grad)
