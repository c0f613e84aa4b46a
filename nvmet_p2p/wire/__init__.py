"""Bytes and typed values of the NVMe specifications; no logic."""
