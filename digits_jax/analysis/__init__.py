"""What is asked of finished runs: accuracy, robustness, explanations, comparisons.

May import training and all before it.
"""
