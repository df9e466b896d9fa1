"""The loop over chunks of rows, forward and backward."""

import jax
import keras

from keras_jointloss._core.backend.jax.convolutions import recomputed


def for_chunks(run, parameters: list, state: list, inputs: list, size: int) -> tuple[list, list]:
    """Calls `run` for one chunk of rows after another, and again in the backward pass."""
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
