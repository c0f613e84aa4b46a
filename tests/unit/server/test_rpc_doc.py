"""docs/rpc.md is what the method table says."""

from __future__ import annotations

from nvmet_p2p.server.methods import METHODS
from tests.tools import gen_rpc_doc


def test_the_page_is_up_to_date() -> None:
    assert gen_rpc_doc.PAGE.read_text(encoding="utf-8") == gen_rpc_doc.render(), "run make docs"


def test_every_method_is_on_it() -> None:
    page = gen_rpc_doc.render()
    assert all(f"### {name}\n" in page for name in METHODS)
