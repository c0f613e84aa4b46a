"""Sans-IO protocol machines: no socket, no clock."""
