"""One training step and how it is mapped over a population. Pure: no files, no jit.

The textbook page of the project. May import data and models.
"""
