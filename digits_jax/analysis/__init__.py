"""Modes that read runs or configs: accuracy, robustness, explanations, comparisons.

May import training and all before it.
"""
