"""Operations on the few numbers of each term that every training step computes.

`ops` is `keras.ops`, but on PyTorch its functions accept only tensors of one dtype and, as a second
argument, numbers: the checks and conversions of Keras take longer than to compute such numbers.
"""

from keras_jointloss._core.backend import quick_ops

ops = quick_ops()
