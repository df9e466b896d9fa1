"""Convolutions in loops of JAX on a CPU, in the order of axes for which XLA has fast code.

XLA transposes the gradients of a convolution to that order only outside of loops
(`ConvCanonicalization`); in a loop it computes them several times slower.
"""

from typing import Any

import jax
import numpy as np
from jax import numpy as jnp
from jax.lax import ConvDimensionNumbers


def recomputed(run):
    """Returns `run` with a gradient that recomputes it; replaces `jax.checkpoint` in a loop.

    The function closes over no tensors to differentiate with respect to.
    """

    def call(*inputs):
        # What `run` closes over, such as a variable that is not trained, becomes an argument: the
        # gradient must not close over the tensors of a function that is being compiled.
        closed, shapes = jax.make_jaxpr(run, return_shape=True)(*inputs)
        structure = jax.tree.structure(shapes)

        @jax.custom_vjp
        def function(constants, *inputs):
            leaves = jax.core.eval_jaxpr(closed.jaxpr, constants, *jax.tree.leaves(inputs))
            return jax.tree.unflatten(structure, leaves)

        def forward(constants, *inputs):
            return function(constants, *inputs), (constants, inputs)

        def backward(given, upstream):
            constants, inputs = given
            leaves, structure = jax.tree.flatten(inputs)
            is_float = [jnp.issubdtype(x.dtype, jnp.inexact) for x in leaves]
            floats = [x for x, is_needed in zip(leaves, is_float, strict=True) if is_needed]

            def of_floats(*floats):
                given = iter(floats)
                mixed = [next(given) if f else x for x, f in zip(leaves, is_float, strict=True)]
                return function.fun(constants, *jax.tree.unflatten(structure, mixed))

            def gradient():
                return jax.vjp(of_floats, *floats)[1](upstream)

            found = iter(_evaluated(jax.make_jaxpr(gradient)()))
            found = jax.tree.unflatten(structure, [next(found) if f else None for f in is_float])
            return None, *found

        function.defvjp(forward, backward)
        return function(closed.consts, *inputs)

    return call


def _evaluated(closed) -> list:
    """Returns the outputs of a closed jaxpr without inputs."""
    from jax.extend.core import Literal

    values: dict[Any, Any] = dict(zip(closed.jaxpr.constvars, closed.consts, strict=True))
    for equation in closed.jaxpr.eqns:
        inputs = [x.val if isinstance(x, Literal) else values[x] for x in equation.invars]
        if equation.primitive.name == "conv_general_dilated":
            results = [_convolution(equation, *inputs)]
        else:
            results = _bound(equation, inputs, equation.params)
        values.update(zip(equation.outvars, results, strict=True))
    return [x.val if isinstance(x, Literal) else values[x] for x in closed.jaxpr.outvars]


def _bound(equation, inputs: list, params: dict) -> list:
    params = equation.primitive.get_bind_params(params)
    if isinstance(params, tuple):  # JAX up to 0.8 returns functions too.
        functions, params = params
        inputs = [*functions, *inputs]
    results = equation.primitive.bind(*inputs, **params)
    return results if equation.primitive.multiple_results else [results]


def _convolution(equation, x, kernel):
    """Returns the output of a convolution, computed with channels last."""
    numbers, rank = equation.params["dimension_numbers"], x.ndim
    x_axes, kernel_axes, y_axes = (
        [spec[0], *spec[2:], spec[1]]
        for spec in (numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec)
    )
    # The kernel's axes are outputs, space, inputs here: it has them as space, inputs, outputs.
    kernel_axes = [*kernel_axes[1:], kernel_axes[0]]
    last = (0, rank - 1, *range(1, rank - 1))
    canonical = ConvDimensionNumbers(last, (rank - 1, rank - 2, *range(rank - 2)), last)
    params = {**equation.params, "dimension_numbers": canonical}
    (y,) = _bound(equation, [x.transpose(x_axes), kernel.transpose(kernel_axes)], params)
    return y.transpose(np.argsort(y_axes))
