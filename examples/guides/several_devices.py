# %% [markdown]
"""
# Large batches and several devices

A contrastive loss learns from what does not belong together: from the other items of the batch. Two
things limit the batch: the activations of the encoders, and the similarities of all items with all
others. This guide shows what holds each of them down, what several devices send each other, and
what that means for batches of up to a million pairs.
"""

# %%
import keras
import numpy as np

import keras_jointloss as kj

# %% [markdown]
"""
## One device

`tile_size` bounds the similarities: a loss holds that many rows of the matrix at a time and
computes them again in the backward pass. With more than 2,048 items it does so by itself, on a GPU
or TPU with more than 5,792, where it holds more rows, since 256 do not fill it.
`ChunkedTower` does the same for the activations of an encoder. Neither changes values or gradients.
"""

# %%
rng = np.random.default_rng(0)
images = rng.integers(0, 256, size=(512, 16, 16, 3)).astype("uint8")
texts = rng.normal(size=(512, 32)).astype("float32")


def build(chunk_size=None):
    """Returns the compiled model of two towers."""
    tower = keras.Sequential(
        [
            keras.Input((16, 16, 3)),
            keras.layers.Rescaling(1 / 255),
            keras.layers.Conv2D(8, 3, activation="relu"),
            keras.layers.Flatten(),
            keras.layers.Dense(32),
        ]
    )
    image, text = keras.Input((16, 16, 3)), keras.Input((32,))
    encode = tower if chunk_size is None else kj.layers.ChunkedTower(tower, chunk_size)
    loss = kj.losses.InfoNCE(tile_size=64)
    pair = kj.layers.ContrastiveTerm(loss, name="pair")((encode(image), text))
    model = keras.Model([image, text], pair)
    model.compile("sgd")
    return model


histories = []
for chunk_size in (None, 64):
    keras.utils.set_random_seed(0)
    fitted = build(chunk_size).fit([images, texts], batch_size=512, epochs=2, verbose=0)
    histories.append(fitted.history["loss"])
print("plain:     ", *np.round(histories[0], 4))
print("in chunks: ", *np.round(histories[1], 4))

# %% [markdown]
"""
Chunks also work on several devices and in several processes: each replica or process encodes its
own rows in chunks, and with `keras.distribution` each chunk takes rows of all devices.

Beside this, [large_batch.py](../large_batch.py) trains on a whole training set as one batch, and
prints the memory that it takes with and without chunks.

## How to start

| | TensorFlow | JAX | PyTorch |
|---|---|---|---|
| several devices of one process | `tf.distribute.MirroredStrategy` | `keras.distribution` | |
| several processes | `MultiWorkerMirroredStrategy` | `keras.distribution` | `DistributedDataParallel`, in a custom loop |
| `steps_per_execution` on one device | yes | yes | no: Keras has none there |

- **`MirroredStrategy`**: build and compile the model in the scope of the strategy. `gather=False`
  in a `ContrastiveTerm` leaves each device to its own share of the batch. A loss of stacked views
  as an *output* compares the items of all devices, in `fit` and `evaluate`. Called in a custom loop
  or by a layer, it sees those of its own device alone, and a warning says so. Keras itself fails
  there with `gradient_accumulation_steps`. Its
  `BatchNormalization(synchronized=True)` ignores masks, and spoils the losses that layers other
  than `ContrastiveTerm`, `ProxyTerm`, `PointWeights` and `LossTerm` add.
- **JAX**: `keras.distribution.DataParallel` and `ModelParallel`. The layout
  `layout_map["<name>/proxies"] = ("model", None)` divides the classes of a `ProxyTerm`. For several
  processes pass each its own rows with `DataParallel(auto_shard_dataset=False)`, or a
  `tf.data.Dataset`.
- **`MultiWorkerMirroredStrategy`**: Keras 3 itself fails there in `fit`. Call
  `kj.distribution.enable_multi_worker_fit()` first; its documentation lists what it replaces.
- **`DistributedDataParallel`**: wrap the model as in Keras' guide, and add `sum(model.losses)`, or
  `model.compute_loss`, to the loss. All processes compute the losses in the same steps, in
  evaluation, too.

If the last batch is divided unevenly, terms and losses of views count each replica by its items, or
by what else their mean divides by: masked steps, weights, labelled targets. What else is added to the loss counts all
alike, as does Keras' own `<output>_loss`. Of several processes only the first
writes TensorBoard files and calls `on_log`. On a busy CPU, PyTorch's threads wait for each other:
`OMP_NUM_THREADS=1` is faster there.

## What devices exchange

Under `tf.distribute`, and in the processes of PyTorch, each device encodes its share of the batch.
Then a `ContrastiveTerm`, or the loss of an output of stacked views,

1. gathers the embeddings of all devices (and labels, masks and weights, which are small),
2. compares its own rows with all columns, in tiles; metrics do so, too, without tiles,
3. adds up the gradients of the gathered embeddings over the devices and keeps its own rows.

So each device computes its share of the matrix and no more, and weights and logs are those of one
device with the whole batch. On JAX, XLA finds the same division from the sharding of the data. The
same idea is behind DisCo-CLIP and the local loss of open_clip; there it is one loss, here it is all
that compare items.

The loss of `SigLIP` is a sum over pairs, so it needs no gathered embeddings, unless the term has a
memory or metrics or its distances are Euclidean. The devices take turns: one sends its second views
to all, and each compares its own first views with them. The backward pass repeats that, and adds up
the gradients of these views for the device that sent them. On JAX the views pass from each device
to the next, in a ring. This is the loss in chunks of Zhai et al. (2023).

[distributed.py](../distributed.py) trains on several processes of one computer, on TensorFlow and
JAX, and prints that their losses are those of one process.

What a device receives in a step, and what it holds for the loss, in bytes:
"""


# %%
def received(batch, devices, dim, views=2, size=4):
    """Returns the bytes that a device receives, with exchanges in a ring: forward and backward."""
    embeddings = batch * views * dim * size
    others = (devices - 1) / devices
    return others * embeddings, 2 * others * embeddings


def held(batch, devices, dim, views=2, size=4, tile_size=256):
    """Returns the bytes for embeddings and their gradient, for a tile, and for all own rows."""
    embeddings = 2 * batch * views * dim * size
    tile, rows = min(tile_size, batch // devices), batch // devices
    return embeddings, tile * batch * size, rows * batch * size


def held_by_siglip(batch, devices, dim, views=2, size=4):
    """Returns the bytes for second views of one device, their gradient, and that of own views."""
    return 2 * (batch // devices) * views * dim * size


print(
    f"{'batch':>9} {'devices':>8} {'received':>10} {'embeddings':>11} {'tile':>9} {'dense':>9} "
    f"{'SigLIP':>9}"
)
for batch in (2**15, 2**18, 2**20):
    for devices in (8, 64, 512):
        embeddings, tile, dense = held(batch, devices, dim=512)
        siglip = held_by_siglip(batch, devices, dim=512)
        cells = [sum(received(batch, devices, dim=512)), embeddings, tile, dense, siglip]
        row = " ".join(f"{cell / 2**20:>9.0f}M" for cell in cells)
        print(f"{batch:>9} {devices:>8} {row}")

# %% [markdown]
"""
The embeddings of a million pairs of dimension 512, with their gradient, take 8 GiB on each device,
however many there are. A tile takes 1 GiB then; a smaller `tile_size` halves it. The matrix of own
rows alone would take 8 GiB even on 512 devices, so that tiles are what makes such batches possible.

`SigLIP` holds, in place of all embeddings, what the last column says, and its tiles are no wider
than the share of a device. It moves the second views twice, and their gradient once. On TensorFlow a
device receives as much as for the other losses, since a share is passed on as a sum with zeros of
the others; on PyTorch it receives a third less. The price is that the backward pass computes the
similarities again, and that the devices wait for each other after every share.

What gradient balancing and rules exchange does not depend on the batch: one number for each pair of
terms, and one for each term.

Published figures, for comparison:

- DisCo-CLIP (Chen et al., 2023) divides the matrix over the devices as above, from O(B^2) to
  O(B^2 / N) in memory. ViT-B/32 trains with a batch of 32K on 8, or 196K on 64 A100 with 40 GB; the
  original CLIP needed 128 of them for 32K.
- Inf-CL (Cheng et al., 2024) computes tiles in fused kernels and passes columns on in a ring:
  CLIP-ViT-L/14 with a batch of 4M on 8, or 12M on 32 A800 with 80 GB.
- open_clip's `--local-loss --gather-with-grad` divides the matrix likewise and holds its rows.
"""
