"""What the processes of PyTorch's `torch.distributed` exchange."""


def count_ranks() -> int:
    """Returns the number of processes; 1 without `torch.distributed`."""
    from torch import distributed

    is_on = distributed.is_available() and distributed.is_initialized()
    return distributed.get_world_size() if is_on else 1


def is_differentiated(x) -> bool:
    """Returns whether a gradient may be taken with respect to a tensor.

    True for one without values, while Keras builds a model: it is sent to no other process.
    """
    import torch

    if not torch.is_tensor(x):
        return False
    return x.device.type == "meta" or (torch.is_grad_enabled() and x.requires_grad)


def sum_of_ranks(x):
    """Returns the sum of a tensor over the processes. No gradient flows."""
    from torch import distributed

    x = x.detach().clone()
    if x.device.type != "meta":  # Without values, while Keras builds a model.
        distributed.all_reduce(x)
    return x


def tensor_of_rank(x, rank: int):
    """Returns the tensor of one process, on each of them. No gradient flows."""
    from torch import distributed

    x = x.detach().clone()
    if x.device.type != "meta":
        distributed.broadcast(x, rank)
    return x


def rows_of_ranks(tensors: list, own) -> tuple[list, list[int], int]:
    """Returns the rows of all processes for each tensor, their numbers, and the own index."""
    import torch
    from torch import distributed

    count = len(own)
    if own.device.type == "meta":
        return [x.detach() for x in tensors], [count], 0
    sent = torch.tensor([count], device=own.device)
    counts = [torch.zeros_like(sent) for _ in range(count_ranks())]
    distributed.all_gather(counts, sent)
    numbers = [int(count) for count in counts]
    results = []
    for x in tensors:
        # All processes send the same number of rows.
        padded = x.new_zeros((max(numbers), *x.shape[1:]))
        padded[:count] = x.detach()
        parts = [torch.empty_like(padded) for _ in numbers]
        distributed.all_gather(parts, padded)
        results.append(torch.cat([x[:n] for x, n in zip(parts, numbers, strict=True)]))
    return results, numbers, distributed.get_rank()
