"""A raw NVMe/TCP initiator against the running daemon. Expected values come from the specifications."""
