"""Where programs run: compilation cache and memory, the mesh, several processes, signals.

May import the files of `digits_jax` itself: types, errors, console, settings.
"""
