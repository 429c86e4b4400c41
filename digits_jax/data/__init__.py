"""From MNIST, drawn digits or a user's pictures to datasets and the batches of a step.

May import devices and the files of `digits_jax` itself.
"""
