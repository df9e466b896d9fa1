# %% [markdown]
"""
# A text encoder from KerasHub

The `TextEmbedder` of [KerasHub](https://keras.io/keras_hub) makes one embedding of a text, but has
no loss of its own. This guide trains it with images: a drawing finds the words that describe it,
and words find their drawing.

The data are 1,906 emoji, drawn by Google, each with some ten words (sources and licences:
`examples/data/README.md`). Run the guide in the root of the repository.
"""

# %%
from collections import Counter
from pathlib import Path

import keras
import keras_hub
import numpy as np

import keras_jointloss as kj

keras.utils.set_random_seed(0)
with np.load("examples/data/emoji_pairs.npz") as file:
    order = np.random.default_rng(0).permutation(len(file["text"]))
    images, texts = file["google"][order], file["text"][order]
train, test = slice(1500), slice(1500, None)

# %% [markdown]
"""
## A tiny preset

A preset is a folder with the configuration, the weights and the vocabulary of an encoder.
`TextEmbedder.from_preset("all_minilm_l6_v2_en")` downloads one that is trained. Here is one without
a download: a small `BertBackbone` from its configuration, whose vocabulary are the words that
describe at least two of the emoji to train on.
"""

# %%
counts = Counter(word for text in texts[train] for word in text.split())
vocabulary = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
vocabulary += sorted(word for word, count in counts.items() if count > 1)
tokenizer = keras_hub.tokenizers.BertTokenizer(vocabulary)
preprocessor = keras_hub.models.BertTextEmbedderPreprocessor(tokenizer, sequence_length=24)
config = {
    "vocabulary_size": len(vocabulary),
    "num_layers": 1,
    "num_heads": 2,
    "hidden_dim": 64,
    "intermediate_dim": 128,
    "max_sequence_length": 24,
}
backbone = keras_hub.models.BertBackbone.from_config(config)
keras_hub.models.BertTextEmbedder(backbone, preprocessor).save_to_preset("models/tiny_bert")
print("files of the preset:", *sorted(path.name for path in Path("models/tiny_bert").iterdir()))

# %% [markdown]
"""
## An encoder and its preprocessor

From here on nothing depends on the size: put the name of a trained preset in place of the folder.
`encode_text` takes texts; for training, the preprocessor makes arrays of them, once.

The embedder averages the tokens and does not use the dense layer that its backbone has for the first
one. It is frozen here, or Keras warns in the first step that it has no gradient.
"""

# %%
embedder = keras_hub.models.TextEmbedder.from_preset("models/tiny_bert", name="embedder")
embedder.backbone.get_layer("pooled_dense").trainable = False
preprocessor = embedder.preprocessor
tokens = {key: np.asarray(x) for key, x in preprocessor(list(texts)).items()}
parameters = embedder.backbone.count_params()
print("tokens:", tokens["token_ids"].shape, " parameters of the backbone:", parameters)

# %% [markdown]
"""
## One model of image and text

`ContrastiveTerm` compares the two embeddings and returns them unchanged. The arrays of the
preprocessor are inputs of the model, so that `fit` takes them beside the images.
`RetrievalEvaluation` searches all 406 held-out emoji after each epoch, not only those of a batch.
"""

# %%
image = keras.Input((32, 32, 3), name="image")
x = keras.layers.Conv2D(32, 4, 4, activation="relu")(keras.layers.Rescaling(1 / 255)(image))
x = keras.layers.Conv2D(64, 3, 2, activation="relu")(x)
tower = keras.Model(image, keras.layers.Dense(64)(keras.layers.Flatten()(x)), name="tower")

inputs = {name: keras.Input(x.shape[1:], dtype=x.dtype, name=name) for name, x in tokens.items()}
term = kj.layers.ContrastiveTerm("InfoNCE", learn_temperature=True, name="words")
model = keras.Model({"image": image, **inputs}, term((tower(image), embedder(inputs))))
model.compile(keras.optimizers.Adam(0.002))


def part(items):
    """Returns the inputs of these emoji by name."""
    return {"image": images[items], **{name: x[items] for name, x in tokens.items()}}


search = kj.callbacks.RetrievalEvaluation(part(test), k=(1, 10), name="words")
callbacks = [kj.callbacks.JointLossCallback(), search]
history = model.fit(part(train), batch_size=128, epochs=8, verbose=0, callbacks=callbacks).history
for key in ("words_loss", "words_temperature", "words_recall_at_1", "words_recall_at_10"):
    print(f"{key:<20}", *np.round(history[key], 3))

# %% [markdown]
"""
By chance, 2.5 % of the drawings would find their words among the first ten.

## Search by words

The embedder was trained in place: `encode_text` embeds any words.
"""

# %%
found = tower.predict(images, verbose=0)
found /= np.linalg.norm(found, axis=1, keepdims=True)
for query in ("red heart", "sad face crying", "family two children"):
    nearest = np.argsort(-found @ embedder.encode_text(query, verbose=0)[0])[:3]
    print(f"{query}: ", "; ".join(texts[i][:24] for i in nearest))

# %% [markdown]
"""
Two texts, such as question and answer, are compared the same way: call the embedder with two dicts
of inputs, `term((embedder(question), embedder(answer)))`. Both then share all its weights. A text
that must not match is a third view, a hard negative. The trained `all_minilm_l6_v2_en` averages and
normalizes as this one does; fine-tune it with a rate of some 2e-5.
"""
