"""Measures time and memory of the contrastive losses for large batches, forward and backward.

Each case runs in a separate process, in float32 with embeddings of dimension 256. It reports its
time and the increase of the memory of the process, or of the GPU if there is one. Cases:

- `tiled`: the loss of the package, computed in tiles of `--tile-size` rows,
- `default`: the loss of the package with its default settings, dense up to a size limit,
- `dense`: a straightforward implementation that stores the full similarity matrix,
- `two_matrices`: the common implementation of InfoNCE with one matrix for each direction,
- `peer`: pytorch-metric-learning (PyTorch only, if installed, up to 4,096 items; its NTXentLoss up
  to 256, as it holds every pair of positives with every negative).

Run: python -m tests.benchmarks.benchmark_contrastive [losses] --batches 4096 16384 65536
"""

import argparse
import importlib.util
import os
import statistics

from tests.benchmarks.timing import in_process, peak_mib, report

DIM = 256
LOSSES = ("InfoNCE", "SigLIP", "NTXent", "SupCon")
# The losses that pytorch-metric-learning has, and for how many items.
PEER_LIMITS = {"NTXent": 256, "SupCon": 4096}


def dense(name, two_matrices=False):
    """Returns a straightforward loss that uses the automatic gradient of the backend."""
    from keras import ops

    def normalized(x):
        return x / ops.sqrt(ops.sum(ops.square(x), axis=-1, keepdims=True))

    def info_nce(views):
        a, b = normalized(views[:, 0]), normalized(views[:, 1])
        logits = ops.matmul(a, ops.transpose(b)) / 0.07
        labels = ops.arange(ops.shape(a)[0])
        others = ops.matmul(b, ops.transpose(a)) / 0.07 if two_matrices else ops.transpose(logits)
        ways = [ops.sparse_categorical_crossentropy(labels, x, True) for x in (logits, others)]
        return 0.5 * ops.mean(ops.add(*ways))

    def siglip(views):
        a, b = normalized(views[:, 0]), normalized(views[:, 1])
        logits = ops.matmul(a, ops.transpose(b)) * 10.0 - 10.0
        size = ops.shape(a)[0]
        signs = 2.0 * ops.eye(size) - 1.0
        return -ops.sum(ops.log_sigmoid(signs * logits)) / ops.cast(size, "float32")

    return {"InfoNCE": info_nce, "SigLIP": siglip}[name]


def loss_of(name, form, labels, tile_size=256):
    """Returns the loss as a function of the views, which may be those of the first items only."""
    import keras

    import keras_jointloss as kj

    if form in ("tiled", "default"):
        loss = getattr(kj.losses, name)(tile_size=tile_size if form == "tiled" else None)
        return lambda views: loss(labels[: keras.ops.shape(views)[0]], views)
    if form == "peer":
        import torch
        from pytorch_metric_learning import losses

        loss = {"NTXent": losses.NTXentLoss(0.1), "SupCon": losses.SupConLoss(0.07)}[name]
        ids = labels if name == "SupCon" else torch.arange(len(labels))
        return lambda views: loss(
            views.transpose(0, 1).flatten(0, 1), ids[: len(views)].repeat(views.shape[1])
        )
    return dense(name, two_matrices=form == "two_matrices")


def measure(name, form, batch, repetitions, tile_size):
    """Runs a case in this process and prints seconds and MiB as JSON."""
    import numpy as np
    from keras import ops

    generator = np.random.default_rng(0)
    views = ops.convert_to_tensor(generator.normal(size=(batch, 2, DIM)).astype("float32"))
    labels = ops.convert_to_tensor(generator.integers(0, max(2, batch // 8), batch))
    step = compiled_step(loss_of(name, form, labels, tile_size))
    step(views[: min(256, batch // 16)])
    base = peak_mib()
    report(lambda: step(views), base, repetitions)


def compiled_step(function):
    """Returns a function that computes value and gradient and returns when they are there."""
    import keras

    backend = keras.backend.backend()
    if backend == "tensorflow":
        import tensorflow as tf

        @tf.function(reduce_retracing=True)
        def step(views):
            with tf.GradientTape() as tape:
                tape.watch(views)
                value = function(views)
            return value, tape.gradient(value, views)

        return lambda views: step(views)[0].numpy()
    if backend == "jax":
        import jax

        step = jax.jit(jax.value_and_grad(function))
        return lambda views: jax.block_until_ready(step(views))

    import torch

    def step(views):
        views = views.detach().requires_grad_()
        function(views).backward()
        if views.is_cuda:
            torch.cuda.synchronize()

    return step


def compare(name, batch, forms, pairs, *options):
    """Prints time and memory of each form, and the ratios of the first form to the others."""
    results = {form: [] for form in forms}
    for _ in range(pairs):
        for form in tuple(results):
            try:
                results[form].append(in_process(__spec__.name, name, form, batch, *options))
            except RuntimeError as error:
                print(f"{name}, {form}, batch {batch}, failed: {error}", flush=True)
                del results[form]
    print(f"{name}, batch {batch}", flush=True)
    first = forms[0]
    for form, rows in results.items():
        seconds = statistics.median(row["seconds"] for row in rows)
        mib = statistics.median(row["mib"] for row in rows)
        ratios = [a["seconds"] / b["seconds"] for a, b in zip(results[first], rows, strict=True)]
        print(
            f"  {form:<13}{seconds:9.4f} s{mib:9.0f} MiB   {first} / {form}: "
            f"time {statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f}), "
            f"memory {statistics.median(row['mib'] for row in results[first]) / mib:.3f}",
            flush=True,
        )


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", help=f"of {', '.join(LOSSES)}; default: all")
    parser.add_argument("--batches", type=int, nargs="+", default=[4096, 16384, 65536])
    parser.add_argument("--pairs", type=int, default=5, help="how often to run each form")
    parser.add_argument("--repetitions", type=int, default=2, help="how often within a process")
    parser.add_argument("--tile-size", type=int, default=256, help="of the form `tiled`")
    arguments = parser.parse_args(argv)
    has_peer = importlib.util.find_spec("pytorch_metric_learning") is not None
    has_peer &= os.environ.get("KERAS_BACKEND") == "torch"
    for name in arguments.names or LOSSES:
        for batch in arguments.batches:
            forms = ["tiled"]
            if batch <= 16384 and name in ("InfoNCE", "SigLIP"):
                forms += ["dense", "two_matrices"] if name == "InfoNCE" else ["dense"]
            if batch <= PEER_LIMITS.get(name, 0) and has_peer:
                forms = ["default", "peer"]
            compare(name, batch, forms, arguments.pairs, arguments.repetitions, arguments.tile_size)


if __name__ == "__main__":
    main()
