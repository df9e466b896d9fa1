"""Measures memory and time of a convolutional tower in `fit`: plain, and in chunks.

`ChunkedTower` is compared with the plain tower and with a layer written by hand that applies the
backend's own recomputation to each chunk: `torch.utils.checkpoint`, `tf.recompute_grad` or
`jax.checkpoint`. Each case runs in two processes, on one batch with an InfoNCE term. One trains for
three steps and reports the time of the fastest. The other trains for one step and reports the
increase of the memory of the process, or of the GPU if there is one, over that of the data and a
model trained on a small batch. In a process `malloc` then returns each freed block of at least 1 MB
to the system, for all ways alike: by default it keeps blocks of up to 32 MiB in the arenas of
several threads, which shows the order of operations and not what they need. On JAX the memory is
what the compiled step allocates for temporary values.

Run: python -m tests.benchmarks.benchmark_chunked --batches 4096 --chunk 256
"""

import argparse
import functools
import json

from tests.benchmarks.timing import in_process, peak_mib, report

WAYS = ("plain", "ChunkedTower", "by hand")


def by_hand(tower, chunk, chunks):
    """Returns a layer that recomputes each chunk in the backward pass."""
    import keras

    backend = keras.backend.backend()
    if backend == "torch":
        from torch.utils.checkpoint import checkpoint

        recomputed = functools.partial(checkpoint, tower, use_reentrant=False)
    elif backend == "jax":
        import jax

        recomputed = jax.checkpoint(tower)
    else:
        import tensorflow as tf

        recomputed = tf.recompute_grad(tower)

    class ByHand(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.tower = tower

        def call(self, x):
            parts = [x[i * chunk : (i + 1) * chunk] for i in range(chunks)]
            return keras.ops.concatenate([recomputed(part) for part in parts])

        def compute_output_shape(self, shape):
            return tower.compute_output_shape(shape)

    return ByHand()


def build(way, batch, chunk):
    """Returns a compiled model."""
    import keras
    from keras import layers

    import keras_jointloss as kj

    keras.utils.set_random_seed(0)
    options = {"activation": "relu", "padding": "same"}
    tower = keras.Sequential(
        [
            keras.Input((28, 28, 1)),
            layers.Conv2D(16, 3, **options),
            layers.Conv2D(16, 3, **options),
            layers.MaxPooling2D(),
            layers.Conv2D(32, 3, **options),
            layers.GlobalAveragePooling2D(),
            layers.Dense(32),
        ]
    )
    image, text = keras.Input((28, 28, 1)), keras.Input((8,))
    encode = {
        "plain": lambda: tower,
        "ChunkedTower": lambda: kj.layers.ChunkedTower(tower, chunk),
        "by hand": lambda: by_hand(tower, chunk, -(-batch // chunk)),
    }[way]()
    a, b = kj.layers.ContrastiveTerm("InfoNCE")((encode(image), layers.Dense(32)(text)))
    model = keras.Model([image, text], a + b)
    model.compile("sgd")
    return model


def temporary_mib(model, x):
    """Returns the memory of the temporary values of a compiled step on JAX."""
    import jax

    def loss(trainable, others, x):
        options = {"training": True, "return_losses": True}
        _, others, losses = model.stateless_call(trainable, others, x, **options)
        return sum(losses), others

    variables = (model.trainable_variables, model.non_trainable_variables)
    values = [[variable.value for variable in part] for part in variables]
    step = jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*values, x).compile()
    return step.memory_analysis().temp_size_in_bytes / 2**20


def measure(way, batch, chunk, steps):
    """Runs a case in this process and prints seconds and MiB as JSON."""
    import keras
    import numpy as np

    model = build(way, batch, chunk)
    generator = np.random.default_rng(0)
    x = [generator.normal(size=(batch, *shape)).astype("float32") for shape in ((28, 28, 1), (8,))]
    is_jax = keras.backend.backend() == "jax"
    if is_jax and steps == 1:
        print(json.dumps({"mib": temporary_mib(model, x)}))
        return
    if not is_jax:  # It compiles for fixed shapes.
        model.fit([part[:8] for part in x], batch_size=8, verbose=0)
    base = peak_mib()
    fit = functools.partial(model.fit, x, batch_size=batch, shuffle=False, verbose=0)
    report(fit, base, steps)


def run(way, batch, chunk):
    """Returns the seconds and MiB of a case, measured in a separate process each."""
    case, fresh = (__spec__.name, way, batch, chunk), {"MALLOC_MMAP_THRESHOLD_": "1000000"}
    return {"seconds": in_process(*case, 3)["seconds"], "mib": in_process(*case, 1, **fresh)["mib"]}


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batches", type=int, nargs="+", default=[4096])
    parser.add_argument("--chunk", type=int, default=256)
    arguments = parser.parse_args(argv)
    for batch in arguments.batches:
        print(f"batch {batch}, chunks of {arguments.chunk}", flush=True)
        rows = {way: run(way, batch, arguments.chunk) for way in WAYS}
        for way, row in rows.items():
            memory, duration = (row[key] / rows["plain"][key] for key in ("mib", "seconds"))
            print(
                f"  {way:<14}{row['mib']:8.0f} MiB{row['seconds']:8.2f} s   "
                f"of plain: memory {memory:.2f}, time {duration:.2f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
