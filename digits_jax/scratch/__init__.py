"""The networks by hand in NumPy: the second engine, and an oracle for the first.

To read in this order: `example` (a 2-3-1 network and its gradients), `layers` (formula,
forward, backward), `optim`, `network` (layers in a row, and back again), `step` (one step of
training); `population` has the signatures of `core.population`.

May import core and all before it. tests/test_scratch.py has a case for each layer.
"""
