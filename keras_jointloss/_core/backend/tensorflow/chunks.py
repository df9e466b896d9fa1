"""The loop over chunks of rows, forward and backward."""

import tensorflow as tf

from keras_jointloss._core.backend.tensorflow import custom_gradient


def for_chunks(run, parameters: list, state: list, inputs: list, size: int) -> tuple[list, list]:
    """Calls `run` for one chunk of rows after another, and again in the backward pass."""
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
            (_, totals), found = _loop(backward, (state, totals), floats, rows, size)
            found = iter(found)
            return *totals, *(next(found) if x.dtype.is_floating else None for x in inputs)

        latest, outputs = _loop(forward, state, likes, rows, size)
        return (*outputs, *latest), gradient

    results = custom_gradient(compute, *parameters, *inputs)
    return list(results[: len(likes)]), list(results[len(likes) :])


def _loop(body, carry, likes, rows, size):
    """Returns the last carry and, for all rows, the tensors that `body` returns for each chunk.

    It receives a function that cuts the rows of the chunk out of a tensor, and the carry, a
    structure of tensors; it returns the next carry and the tensors, whose dtypes and shapes are
    those of `likes`. The last chunk overlaps the one before it, so that all have the same size;
    with `is_new` the function sets its first rows to 0.
    """
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
