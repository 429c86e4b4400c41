"""The configs: dataset, network, optimiser and schedule of each run."""
