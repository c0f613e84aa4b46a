"""Preparing a machine for drives on vfio-pci: binding them, huge pages, and putting all of it back."""
