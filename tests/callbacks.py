"""Callbacks that record, interrupt or evaluate in the middle of a training."""

import keras


class Records:
    """Records what the callback logs: `tags[run][tag][step]`."""

    def __init__(self):
        self.tags = {}

    def __call__(self, run, values, step):
        for tag, value in values.items():
            self.tags.setdefault(run, {}).setdefault(tag, {})[step] = value


class CrashError(Exception):
    """Simulates a crash during training."""


class Interrupts(keras.callbacks.Callback):
    """Raises an error at the beginning of an epoch or at the end of a batch."""

    def __init__(self, error=CrashError, epoch=None, batch=None):
        super().__init__()
        self.error, self.epoch, self.batch = error, epoch, batch

    def on_epoch_begin(self, epoch, logs=None):
        if epoch == self.epoch:
            raise self.error("stop")

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            raise self.error("stop")


class Evaluates(keras.callbacks.Callback):
    """Evaluates the model after a batch of each epoch, or after each epoch."""

    def __init__(self, *data, batch=None, **options):
        super().__init__()
        self.data, self.batch, self.options = data, batch, {"verbose": 0, **options}

    def on_train_batch_end(self, batch, logs=None):
        if batch == self.batch:
            self.model.evaluate(*self.data, **self.options)

    def on_epoch_end(self, epoch, logs=None):
        if self.batch is None:
            self.model.evaluate(*self.data, **self.options)


def train_in_a_loop(model, callback, x, y, batch_size):
    """Trains for an epoch in a loop as users write it, and yields after each batch."""
    hooks = keras.callbacks.CallbackList([callback], model=model, add_history=False)
    hooks.on_train_begin()
    hooks.on_epoch_begin(0)
    for batch, start in enumerate(range(0, len(x), batch_size)):
        rows = slice(start, start + batch_size)
        hooks.on_train_batch_begin(batch)
        own_y = {name: values[rows] for name, values in y.items()}
        logs = model.train_on_batch(x[rows], own_y, return_dict=True)
        hooks.on_train_batch_end(batch, logs)
        yield batch
    hooks.on_epoch_end(0, logs)
    hooks.on_train_end()
