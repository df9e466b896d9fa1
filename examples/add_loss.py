"""Two mean squared errors that layers add to the loss of the model, in plain `fit`.

The model and the two terms are those of explicit_weights.py, but the target is an input, and each
term is a layer that compares an embedding with it. There is nothing left to write for `compile`. It
replaces a model of this kind, and the loop that sums up what it adds:

    class Towers(keras.Model):
        def call(self, inputs):
            image, words, target = inputs
            a, b = self.image_tower(image), self.text_tower(words)
            self.add_loss(0.7 * tf.reduce_mean(tf.square(a - target)))
            self.add_loss(0.3 * tf.reduce_mean(tf.square(b - target)))
            return a, b

    for inputs in dataset:
        with tf.GradientTape() as tape:
            model(inputs, training=True)
            loss = tf.add_n(model.losses)
        gradients = tape.gradient(loss, model.trainable_variables)
        optimizer.apply_gradients(zip(gradients, model.trainable_variables))

Run: python examples/add_loss.py
"""

import argparse

import keras
from explicit_weights import WEIGHTS, load_emoji_with_targets, report
from weighted_sum import build_towers

import keras_jointloss as kj


def build_model(image_shape, vocabulary_size, dim, weights=WEIGHTS, optimizer="adam", **sizes):
    """Returns the compiled model. Its layer `towers` embeds without a target."""
    inputs, a, b = build_towers(image_shape, vocabulary_size, dim, **sizes)
    towers = keras.Model(inputs, {"image": a, "text": b}, name="towers")
    target = keras.Input((dim,), name="target")
    embeddings = towers(inputs)
    for name, weight in weights.items():
        term = kj.layers.ContrastiveTerm("MeanSquaredError", weight=weight, name=f"{name}_term")
        # What the layer returns goes on: without it the term would be no part of the model.
        embeddings[name], _ = term((embeddings[name], target))
    model = keras.Model([*inputs, target], embeddings)
    model.compile(optimizer)
    return model


def main(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--epochs", type=int, default=8)
    arguments = parser.parse_args(argv)
    keras.utils.set_random_seed(0)
    train, test = load_emoji_with_targets()
    model = build_model(train["image"].shape[1:], train["words"].shape[1], train["target"].shape[1])
    x = {name: train[name] for name in ("image", "words", "target")}
    # On JAX it takes the callback to see the terms in the logs.
    callbacks = [kj.callbacks.JointLossCallback()]
    model.fit(x, batch_size=32, epochs=arguments.epochs, verbose=2, callbacks=callbacks)

    # To embed, no target is needed.
    towers = model.get_layer("towers")
    embeddings = towers.predict({name: test[name] for name in ("image", "words")}, verbose=0)
    return report(embeddings, test["target"])


if __name__ == "__main__":
    main()
