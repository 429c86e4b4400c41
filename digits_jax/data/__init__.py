"""From digits to the batches of a step.

Sources: `sources` (MNIST), `named` (other public sets), `own` (a user's files), `drawn`,
`nondigits`. Examples: `recipes`, `numbers`, `dataset`, `augment`, `batches`. Pictures:
`pictures`, `ink`, `arrays`.

May import devices and the files of `digits_jax` itself.
"""
