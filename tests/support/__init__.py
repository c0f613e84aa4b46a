"""What the conformance tests stand on: a raw NVMe/TCP initiator of their own and a daemon fixture."""
