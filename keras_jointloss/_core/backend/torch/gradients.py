"""Gradients on PyTorch."""

from keras import ops


def custom_gradient(compute, *inputs):
    """Returns the tensor that `compute` returns, differentiated with the function it returns."""

    def computed(*inputs):
        result, gradient = compute(*inputs)
        # Keras passes the upstream gradient by name, after the inputs.
        return result, lambda *_, upstream: gradient(upstream)

    return ops.custom_gradient(computed)(*inputs)


def differentiated(x):
    """Returns a tensor to differentiate with respect to, a leaf of the graph."""
    return x.detach().requires_grad_()


def has_own_gradient(outermost) -> bool:
    """Returns False: no function leaves out the gradients of the tensors it captures."""
    return False
