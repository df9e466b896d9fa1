"""The loops of `for_chunks` over chunks of rows, forward and backward, for each backend."""

import keras

from keras_jointloss._core.backend.convolutions import recomputed
from keras_jointloss._core.backend.gradients import of_tensorflow


def for_jax_chunks(run, parameters: list, state: list, inputs: list, size: int):
    """`for_chunks` on JAX."""
    import jax

    # Gradients of the scan are sums over its steps, and a checkpoint stores only its inputs.
    run = recomputed(run) if jax.default_backend() == "cpu" else jax.checkpoint(run)
    rows = inputs[0].shape[0]
    full = rows // size
    # Of a batch that is split over devices, each chunk takes rows of all of them.
    is_split = keras.distribution.distribution() is not None
    parts = []
    if full:
        chunks = [x[: full * size] for x in inputs]
        if is_split:
            chunks = [x.reshape((size, full, *x.shape[1:])).swapaxes(0, 1) for x in chunks]
        else:
            chunks = [x.reshape((full, size, *x.shape[1:])) for x in chunks]

        def step(state, chunk):
            outputs, state = run(parameters, state, chunk)
            return state, outputs

        state, outputs = jax.lax.scan(step, state, chunks)
        outputs = [x.swapaxes(0, 1) for x in outputs] if is_split else outputs
        parts.append([x.reshape((full * size, *x.shape[2:])) for x in outputs])
    if rows % size or not full:
        outputs, state = run(parameters, state, [x[full * size :] for x in inputs])
        parts.append(outputs)
    if len(parts) == 1:
        return parts[0], state
    return [jax.numpy.concatenate(x) for x in zip(*parts, strict=True)], state


def for_torch_chunks(run, parameters: list, state: list, inputs: list, size: int):
    """`for_chunks` on PyTorch."""
    import torch

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


def for_tensorflow_chunks(run, parameters: list, state: list, inputs: list, size: int):
    """`for_chunks` on TensorFlow."""
    import tensorflow as tf

    # Outside of a graph, Keras leaves a variable what it is.
    parameters, count = [tf.convert_to_tensor(x) for x in parameters], len(parameters)
    rows = inputs[0].shape[0] or tf.shape(inputs[0])[0]
    length = min(size, rows) if isinstance(rows, int) else None
    specs = [[tf.TensorSpec(x.shape, x.dtype) for x in xs] for xs in (parameters, state)]
    chunk = [tf.TensorSpec((length, *x.shape[1:]), x.dtype) for x in inputs]
    likes = (
        tf.function(run, autograph=False).get_concrete_function(*specs, chunk).structured_outputs[0]
    )

    def compute(*tensors):
        parameters, inputs = list(tensors[:count]), list(tensors[count:])
        floats = [x for x in inputs if x.dtype.is_floating]

        def forward(cut, latest):
            outputs, latest = run(parameters, latest, [cut(x) for x in inputs])
            return latest, outputs

        def gradient(*upstream):
            pairs = [(i, upstream[i]) for i, x in enumerate(likes) if x.dtype.is_floating]

            def backward(cut, carry):
                latest, totals = carry
                chunk = [cut(x) for x in inputs]
                sources = [*parameters, *(x for x in chunk if x.dtype.is_floating)]
                with tf.GradientTape(watch_accessed_variables=False) as tape:
                    tape.watch(sources)
                    outputs, latest = run(parameters, latest, chunk)
                found = tape.gradient(
                    [outputs[i] for i, _ in pairs],
                    sources,
                    [cut(g, is_new=True) for _, g in pairs],
                    unconnected_gradients="zero",
                )
                found = [tf.convert_to_tensor(x) for x in found]  # Embeddings have sparse ones.
                totals = [x + y for x, y in zip(totals, found, strict=False)]
                return (latest, totals), found[count:]

            totals = [tf.zeros_like(x) for x in parameters]
            (_, totals), found = _tensorflow_loop(backward, (state, totals), floats, rows, size)
            found = iter(found)
            return *totals, *(next(found) if x.dtype.is_floating else None for x in inputs)

        latest, outputs = _tensorflow_loop(forward, state, likes, rows, size)
        return (*outputs, *latest), gradient

    results = of_tensorflow(compute, [*parameters, *inputs])
    return list(results[: len(likes)]), list(results[len(likes) :])


def _tensorflow_loop(body, carry, likes, rows, size):
    """Returns the last carry and, for all rows, the tensors that `body` returns for each chunk.

    Args:
        body: Called with a function that cuts the rows of the chunk out of a tensor, and the carry;
            returns the next carry and the tensors. The last chunk overlaps the one before it, so
            that all have the same size; with `is_new` the function sets its first rows to 0.
        carry: A structure of tensors.
        likes: Tensors or specs with the dtypes and shapes of the returned tensors.
        rows: The number of rows.
        size: The number of rows in a chunk.
    """
    import tensorflow as tf

    is_static = isinstance(rows, int)
    length = min(size, rows) if is_static else tf.minimum(size, rows)
    chunks = -(-rows // size) if is_static else tf.maximum(-(-rows // size), 1)
    shapes = [(length if is_static else None, *x.shape[1:]) for x in likes]
    arrays = [
        tf.TensorArray(x.dtype, chunks, element_shape=shape)
        for x, shape in zip(likes, shapes, strict=True)
    ]

    def step(i, carry, arrays):
        first = tf.minimum(i * size, rows - length)

        def cut(x, is_new=False):
            # XLA requires a begin that may vary, and a size that may not.
            others = tf.shape(x)[1:]
            begin = tf.concat([[first], tf.zeros_like(others)], 0)
            cut = tf.slice(x, begin, tf.concat([[length], others], 0))
            cut = tf.ensure_shape(cut, (length if is_static else None, *x.shape[1:]))
            if is_new:
                mask = first + tf.range(length) >= i * size
                mask = tf.reshape(mask, tf.concat([[length], tf.ones_like(others)], 0))
                cut = tf.where(mask, cut, tf.zeros_like(cut))
            return cut

        carry, values = body(cut, carry)
        arrays = [array.write(i, x) for array, x in zip(arrays, values, strict=True)]
        return i + 1, carry, arrays

    _, carry, arrays = tf.while_loop(
        lambda i, *_: i < chunks, step, (tf.constant(0), carry, arrays), parallel_iterations=1
    )
    end = (chunks - 1) * length
    results = []
    for array, like in zip(arrays, likes, strict=True):
        x = array.stack()
        x = tf.reshape(x, tf.concat([[chunks * length], tf.shape(x)[2:]], 0))
        if not is_static or chunks * length > rows:
            x = tf.concat([x[:end], x[end + chunks * length - rows :]], 0)
        results.append(tf.ensure_shape(x, (rows if is_static else None, *like.shape[1:])))
    return carry, results
