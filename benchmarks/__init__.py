"""Measures the package against its peers; no part of it."""
