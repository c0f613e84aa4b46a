"""nvmet_p2p: an NVMe over Fabrics target that stages data in a drive's Controller Memory Buffer."""

from __future__ import annotations

__version__ = "0.1.0"  # also in meson.build; tests/test_tidy.py compares
