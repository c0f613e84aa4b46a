"""Persistence of the configuration."""
