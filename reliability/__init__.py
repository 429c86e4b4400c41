"""Scripts that measure how runs behave when something fails; no part of the package."""
