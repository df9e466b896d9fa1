"""The set-up of the study with texts: reviews of clothing with three targets, some missing."""

import re
from collections import Counter
from typing import ClassVar

import keras
import numpy as np

import keras_jointloss as kj
from tests.study.base import CROSS_ENTROPY, Setup, explained, packaged, parts_of, ranking

DEPARTMENTS = ("Bottoms", "Dresses", "Intimate", "Jackets", "Tops", "Trend")
WORDS, LENGTH = 5000, 100


class Reviews(Setup):
    """Rating, recommendation and department from title and text of 23,486 reviews of clothing.

    Fourteen reviews have no department. The mean rating of the training data is subtracted.
    """

    weights: ClassVar = {"rating": 1.0, "recommended": 1.0, "department": 1.0}
    rates: ClassVar = {"adam": 0.001, "momentum": 0.02}
    epochs = 6
    batch_size = 128

    def load(self, seed):
        import pandas

        name = "WomensClothingE-CommerceReviews.parquet.brotli"
        table = pandas.read_parquet(packaged(name))
        texts = [" ".join(pair) for pair in table[["Title", "Review Text"]].fillna("").to_numpy()]
        words = [re.findall(r"[a-z']+", text.lower())[:LENGTH] for text in texts]
        department = table["Department Name"].map({x: i for i, x in enumerate(DEPARTMENTS)})
        targets = {
            "rating": table["Rating"],
            "recommended": table["Recommended IND"],
            "department": department,  # NaN where there is none.
        }
        targets = {name: x.to_numpy("float32") for name, x in targets.items()}
        parts = parts_of(len(words), seed, len(words) // 5, len(words) // 5)
        targets["rating"] -= targets["rating"][parts[0]].mean()
        counts = Counter(word for row in parts[0] for word in words[row])
        # 0 is for no word, 1 for any other.
        number = {word: 2 + i for i, (word, _) in enumerate(counts.most_common(WORDS - 2))}
        x = np.zeros((len(words), LENGTH), "int32")
        for row, text in zip(x, words, strict=True):
            row[: len(text)] = [number.get(word, 1) for word in text]
        return [(x[part], {name: y[part] for name, y in targets.items()}) for part in parts]

    def compiled(self, x, y, weights, weighting, aggregator, optimizer):
        inputs = keras.Input((LENGTH,), dtype="int32")
        embedded = keras.layers.Embedding(WORDS, 32)(inputs)
        is_word = keras.ops.cast(keras.ops.expand_dims(inputs, -1) > 0, "float32")
        count = keras.ops.maximum(keras.ops.sum(is_word, axis=1), 1.0)
        mean = keras.ops.sum(embedded * is_word, axis=1) / count
        # Means over many words are short, and without it SGD learns next to nothing.
        hidden = keras.layers.LayerNormalization()(mean)
        hidden = keras.layers.Dense(64, activation="relu")(hidden)
        z = kj.layers.GradientBalancer(list(self.weights), aggregator)(hidden)
        sizes = {"rating": 1, "recommended": 1, "department": len(DEPARTMENTS)}
        outputs = {
            name: keras.layers.Dense(size, name=name)(z[name]) for name, size in sizes.items()
        }
        model = keras.Model(inputs, outputs)
        losses = {
            "rating": "mean_squared_error",
            "recommended": keras.losses.BinaryCrossentropy(from_logits=True),
            "department": CROSS_ENTROPY,
        }
        joint = kj.joint_loss(losses, weights, weighting, missing={"department": float("nan")})
        model.compile(optimizer, **joint)
        return model, model

    def scores(self, model, x, y):
        predicted = model.predict(x, batch_size=4096, verbose=0)
        if not all(np.isfinite(output).all() for output in predicted.values()):
            return dict.fromkeys(self.weights, np.nan)
        known = np.isfinite(y["department"])
        found = predicted["department"].argmax(axis=1) == y["department"]
        return {
            "rating": explained(predicted["rating"][:, 0], y["rating"]),
            "recommended": ranking(predicted["recommended"][:, 0], y["recommended"] > 0),
            "department": np.mean(found[known]),
        }
