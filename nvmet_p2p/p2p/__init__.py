"""PCI topology, peer-to-peer distances and the choice of a staging pool: pure functions on an injected sysfs root."""
