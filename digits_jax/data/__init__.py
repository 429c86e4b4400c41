"""From digits to the batches of a step.

Sources: `sources` (MNIST), `named` (other public sets), `own` (a user's files), `drawn`. Examples:
`recipes`, `dataset`, `augment`, `batches`. Pictures: `pictures`, `ink`, `arrays`.

May import devices and the files of `digits_jax` itself.
"""
