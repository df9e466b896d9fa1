"""The one set of rules by which a training is judged.

The warnings of `JointLossCallback`, the marks in TensorBoard's tab and `kj.diagnose` use them. A
rule is a function of numbers that returns a `Finding`, or `None`. It loads no Keras.
"""
