"""Keeps pools, permissions and placements in step with the configuration, the machine and the data plane."""
