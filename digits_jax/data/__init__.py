"""Data: MNIST, digits drawn by a program, and the pairs made of either."""
