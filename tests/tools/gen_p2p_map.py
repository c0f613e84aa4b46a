"""Draws docs/p2p-map.svg, the picture of docs/p2p.md, from a machine made of files. `make docs` runs it."""

from __future__ import annotations

import tempfile
from pathlib import Path

from nvmet_p2p.p2p.render_svg import map_svg
from nvmet_p2p.p2p.report import map_document
from tests.unit.p2p.machines import illustration

PICTURE = Path(__file__).resolve().parents[2] / "docs/p2p-map.svg"


def render() -> str:
    """The picture."""
    with tempfile.TemporaryDirectory() as folder:
        return map_svg(map_document(illustration(Path(folder)).topology()))


if __name__ == "__main__":
    PICTURE.write_text(render(), encoding="utf-8")
