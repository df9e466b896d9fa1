"""The loop over chunks of rows, forward and backward."""

import torch


def for_chunks(run, parameters: list, state: list, inputs: list, size: int) -> tuple[list, list]:
    """Calls `run` for one chunk of rows after another, and again in the backward pass."""
    count = len(parameters)
    starts = range(0, max(len(inputs[0]), 1), size)
    # Dropout without a seed uses the generators of PyTorch.
    devices = sorted({x.device.index for x in inputs if x.device.type == "cuda"})

    def restore(generators):
        torch.set_rng_state(generators[0])
        for device, generator in zip(devices, generators[1:], strict=True):
            torch.cuda.set_rng_state(generator, device)

    class Chunks(torch.autograd.Function):
        @staticmethod
        def forward(ctx, *tensors):
            ctx.save_for_backward(*tensors)
            ctx.set_materialize_grads(False)
            ctx.generators = [torch.get_rng_state(), *map(torch.cuda.get_rng_state, devices)]
            parts, latest = [], state
            for start in starts:
                chunk = [x[start : start + size] for x in tensors[count:]]
                outputs, latest = run(list(tensors[:count]), latest, chunk)
                parts.append(outputs)
            outputs = [torch.cat(x) for x in zip(*parts, strict=True)]
            ctx.outputs = len(outputs)
            # A tensor of the state that does not change must be returned as a new one.
            return *outputs, *(x.clone() for x in latest)

        @staticmethod
        def backward(ctx, *upstream):
            tensors = ctx.saved_tensors
            needed = [i for i, is_needed in enumerate(ctx.needs_input_grad) if is_needed]
            totals = {i: torch.zeros_like(tensors[i]) for i in needed}
            latest = state
            with torch.random.fork_rng(devices), torch.enable_grad():
                restore(ctx.generators)
                for start in starts:
                    rows = slice(start, start + size)
                    leaves = [x if i < count else x[rows] for i, x in enumerate(tensors)]
                    leaves = [x.detach() for x in leaves]
                    for i in needed:
                        leaves[i].requires_grad_()
                    outputs, latest = run(leaves[:count], latest, leaves[count:])
                    pairs = [
                        (y, g[rows])
                        for y, g in zip(outputs, upstream[: ctx.outputs], strict=True)
                        if g is not None and y.requires_grad
                    ]
                    sources = [leaves[i] for i in needed]
                    if not pairs:
                        continue
                    ys, gs = zip(*pairs, strict=True)
                    found = torch.autograd.grad(ys, sources, gs, allow_unused=True)
                    for i, gradient in zip(needed, found, strict=True):
                        if gradient is not None:
                            total = totals[i] if i < count else totals[i][rows]
                            total += gradient
            return tuple(totals.get(i) for i in range(len(tensors)))

    results = Chunks.apply(*parameters, *inputs)
    end = len(results) - len(state)
    return list(results[:end]), list(results[end:])
