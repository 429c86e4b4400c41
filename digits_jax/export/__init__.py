"""ONNX files, and the page that reads drawn digits with them.

May import training, analysis and all before them.
"""
