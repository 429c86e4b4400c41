"""Handwritten digits in JAX: small networks, whole populations, honest numbers."""
