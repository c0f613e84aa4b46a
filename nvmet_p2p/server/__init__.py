"""The admin JSON-RPC and the NVMe/TCP listeners."""
