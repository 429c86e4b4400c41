"""What happens to runs when things go wrong: scripts, and no part of the package."""
