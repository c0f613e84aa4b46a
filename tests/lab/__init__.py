"""The QEMU lab: a guest with Debian's kernel, so that the real Linux initiator meets the target. See README.md."""
