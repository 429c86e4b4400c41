"""Figures, tables and summaries of arrays and files; nothing here trains.

May import devices and the files of `digits_jax` itself.
"""
