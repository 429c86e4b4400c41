"""Hyperparameter search: whole populations of trials.

May import training and analysis.
"""
