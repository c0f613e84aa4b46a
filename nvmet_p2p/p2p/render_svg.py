"""The map as one SVG image: the tree on the left, and in line with its leaves the table of distances.

A bridge with one thing below it shares that thing's line, so that a drive and its switch port are one line. Colours
follow the reader's light or dark scheme; kinds of way differ in their text as well, not in colour alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any, Final

from nvmet_p2p.p2p.render_text import columns_of, host_label, names_of, size

Document = Mapping[str, Any]

ROW: Final = 26
INDENT: Final = 20
MARGIN: Final = 24
CHAR: Final = 6.7  # width of a character of the 11 px monospaced font
SMALL_CHAR: Final = 5.5  # of the 9 px one
HEADER: Final = 64  # title and machine
COLUMN: Final = 34
BAR: Final = 56
GAP: Final = 28
LINE: Final = 18

STYLE: Final = """
.page{fill:#ffffff}.ink{fill:#1b2430}.soft{fill:#5d6b7a}.wire{stroke:#b3bdc8;fill:none;stroke-width:1.5}
.band{fill:#f4f6f8}.drive{fill:#e3edf9;stroke:#7ba3d4}.nic{fill:#efe8f8;stroke:#a98bd0}.other{fill:#eef1f4;stroke:#b3bdc8}
.host{fill:#2f3e4e}.hostink{fill:#ffffff}.warn{fill:#b3261e}.free{fill:#1d7f6e}.taken{fill:#c9d2db}
.same-device{fill:#12685a}.bus-address{fill:#2f9e8a}.host-bridge{fill:#f0b648}.none{fill:#e4e7eb}
.on-same-device,.on-bus-address{fill:#ffffff}.on-host-bridge{fill:#3a2a00}.on-none{fill:#76828f}
text{font-family:ui-monospace,SFMono-Regular,Menlo,Consolas,"DejaVu Sans Mono",monospace;font-size:11px}
.title{font-size:15px;font-weight:600}.small{font-size:9px}.mid{text-anchor:middle}.strong{font-weight:600}
@media (prefers-color-scheme:dark){
.page{fill:#14191f}.ink{fill:#e6ebf0}.soft{fill:#94a2b1}.wire{stroke:#4a5866}
.band{fill:#1b222a}.drive{fill:#1d3350;stroke:#4f7db5}.nic{fill:#332650;stroke:#7f62b0}.other{fill:#242d37;stroke:#4a5866}
.host{fill:#c6d0da}.hostink{fill:#14191f}.warn{fill:#ff8a80}.free{fill:#35b39c}.taken{fill:#3a4653}
.same-device{fill:#7fdcc8}.bus-address{fill:#2f9e8a}.host-bridge{fill:#c98f22}.none{fill:#2a333d}
.on-same-device{fill:#06281f}.on-bus-address{fill:#ffffff}.on-host-bridge{fill:#1c1300}.on-none{fill:#94a2b1}}
"""
TABLE_TITLE: Final = "distance from provider"
SIGNS: Final = "! with a caution · ACS: redirects to the root complex · bar: CMB, coloured as far as it is free"
KINDS: Final = (
    ("same-device", "0", "same device"),
    ("bus-address", "4", "inside a PCIe switch"),
    ("host-bridge", "4", "through the host bridge"),
    ("none", "×", "refused by the kernel"),
)


@dataclass(frozen=True)
class Line:
    """A line of the tree: its chain of bridges and the node at its end, or a host bridge (``nodes`` empty)."""

    depth: int
    parent: int | None  # the line above which it hangs
    nodes: tuple[Document, ...]
    host: Document | None = None

    @property
    def leaf(self) -> Document | None:
        """The drive, NIC or provider on this line."""
        return self.nodes[-1] if self.nodes and not self.nodes[-1]["children"] else None


def map_svg(document: Document) -> str:
    """The image as text. Everything that came from the machine is escaped."""
    lines = list(_lines(document["tree"]))
    columns = columns_of(document)
    names = names_of(document)
    notes = list(_notes(document))
    tree_width = max([_line_width(line) for line in lines], default=200.0)
    table_left = MARGIN + tree_width + GAP
    heads = max((len(names.get(bdf, bdf)) for bdf in columns), default=0) * CHAR + 16 if columns else 0
    top = HEADER + heads
    bottom = top + len(lines) * ROW
    legend, legend_width = _legend(bottom + 20)
    texts = [_machine_line(document), *notes]
    table_width = max(len(columns) * COLUMN, len(TABLE_TITLE) * CHAR) if columns else 0
    width = MARGIN + max(table_left + table_width, legend_width, *(MARGIN + len(text) * CHAR for text in texts))
    height = bottom + 56 + len(notes) * LINE + MARGIN
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:.0f} {height:.0f}" width="{width:.0f}" '
        f'height="{height:.0f}" role="img" aria-label="Peer-to-peer map">',
        f"<style>{STYLE}</style>",
        f'<rect class="page" width="{width:.0f}" height="{height:.0f}"/>',
        _text(MARGIN, 32, "Peer-to-peer map", "ink title"),
        _text(MARGIN, 50, _machine_line(document), "soft"),
        *_bands(lines, top, width),
        *_wires(lines, top),
        *(part for at, line in enumerate(lines) for part in _draw(line, top + at * ROW)),
        *_table(document, lines, columns, names, table_left, top),
        *legend,
        *(_text(MARGIN, bottom + 76 + at * LINE, note, "soft") for at, note in enumerate(notes)),
        "</svg>\n",
    ]
    return "\n".join(parts)


def _machine_line(document: Document) -> str:
    cpu = document["cpu"]
    return f"{cpu['model_name'] or cpu['vendor'] or 'unknown CPU'}, kernel {document['kernel']['release'] or 'unknown'}"


def _notes(document: Document) -> Iterator[str]:
    if not document["verdicts"]:
        yield "No device offers peer memory here."
    for entry in document["namespaces"]:
        choice = entry["choice"]
        rests = ", ".join(f"{key} {choice[key] or 'host memory'}" for key in ("read", "write", "copy"))
        yield f"{entry['nqn']} namespace {entry['nsid']} ({entry['bdev']}): {rests}"


def _lines(tree: Sequence[Document]) -> Iterator[Line]:
    number = 0
    for host in tree:
        yield Line(0, None, (), host)
        waiting = [(node, 1, number) for node in reversed(host["children"])]
        number += 1
        while waiting:
            node, depth, parent = waiting.pop()
            chain = [node]
            while len(chain[-1]["children"]) == 1:
                chain.append(chain[-1]["children"][0])
            yield Line(depth, parent, tuple(chain))
            waiting += [(below, depth + 1, number) for below in reversed(chain[-1]["children"])]
            number += 1


def _text(x: float, y: float, text: str, classes: str = "ink") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{classes}">{escape(text)}</text>'


def _bands(lines: Sequence[Line], top: float, width: float) -> Iterator[str]:
    """Every second leaf has a band, to lead the eye from the tree to the table."""
    dark = False
    for at, line in enumerate(lines):
        if line.leaf is None:
            dark = False
            continue
        if dark:
            yield f'<rect class="band" x="0" y="{top + at * ROW:.1f}" width="{width:.0f}" height="{ROW}"/>'
        dark = not dark


def _wires(lines: Sequence[Line], top: float) -> Iterator[str]:
    for at, line in enumerate(lines):
        if line.parent is None:
            continue
        x = MARGIN + (line.depth - 1) * INDENT + 9
        start, end = top + line.parent * ROW + ROW - 3, top + at * ROW + ROW / 2
        yield f'<path class="wire" d="M{x:.1f} {start:.1f}V{end:.1f}H{x + INDENT - 9:.1f}"/>'


def _node_texts(node: Document) -> tuple[str, str]:
    """Main words of a node, and smaller ones."""
    leaf = node["kind"] in ("drive", "nic") or node["provider"]
    name = ", ".join(node["names"])
    main = f"{node['bdf']} {name}".strip() if leaf else node["bdf"].removeprefix("0000:")
    if not leaf:
        return main, "" if node["kind"] == "switch downstream port" else node["kind"].removeprefix("switch ")
    small = []
    if node["numa_node"] is not None:
        small.append(f"node {node['numa_node']}")
    if node["driver"] is None or (node["kind"] == "drive" and node["driver"] != "nvme"):
        small.append(node["driver"] or "no driver")
    if node["translated"]:
        small.append("IOMMU")
    return main, " ".join(small)


def _node_width(node: Document) -> float:
    main, small = _node_texts(node)
    width = len(main) * CHAR + 14 + (len(small) * SMALL_CHAR + 6 if small else 0)
    width += 3 * SMALL_CHAR + 8 if node["redirects"] else 0
    if node["provider"]:
        width += BAR + 8 + len(size(node["provider"]["size"])) * SMALL_CHAR + 8
    return width


def _line_width(line: Line) -> float:
    if line.host is not None:
        return len(host_label(line.host)) * CHAR + 20
    return line.depth * INDENT + sum(_node_width(node) + 10 for node in line.nodes)


def _draw(line: Line, y: float) -> Iterator[str]:
    if line.host is not None:
        label = host_label(line.host)
        width = len(label) * CHAR + 16
        yield f'<rect class="host" x="{MARGIN}" y="{y + 3:.1f}" width="{width:.1f}" height="20" rx="4"/>'
        yield _text(MARGIN + 8, y + 17, label, "hostink")
        return
    x: float = MARGIN + line.depth * INDENT
    for at, node in enumerate(line.nodes):
        if at:
            yield f'<path class="wire" d="M{x - 10:.1f} {y + ROW / 2:.1f}h10"/>'
        yield from _draw_node(node, x, y)
        x += _node_width(node) + 10


def _draw_node(node: Document, x: float, y: float) -> Iterator[str]:
    main, small = _node_texts(node)
    kind = node["kind"] if node["kind"] in ("drive", "nic") else "other"
    box = len(main) * CHAR + 12
    title = f"{node['bdf']} {node['kind']} {node['vendor']:04x}:{node['device']:04x}, driver {node['driver']}"
    acs = "unknown" if not node["acs_known"] else "none" if node["acs"] is None else " ".join(node["acs"]) or "off"
    yield f"<g><title>{escape(title)}, ACS {acs}</title>"
    yield f'<rect class="{kind}" x="{x:.1f}" y="{y + 4:.1f}" width="{box:.1f}" height="18" rx="4"/>'
    yield _text(x + 6, y + 17, main, "ink strong" if node["provider"] else "ink")
    x += box + 4
    if node["redirects"]:
        yield _text(x, y + 16.5, "ACS", "warn small strong")
        x += 3 * SMALL_CHAR + 8
    if small:
        yield _text(x, y + 16.5, small, "soft small")
        x += len(small) * SMALL_CHAR + 6
    if node["provider"]:
        yield from _memory(node["provider"], x + 2, y)
    yield "</g>"


def _memory(provider: Document, x: float, y: float) -> Iterator[str]:
    """A bar of the memory's size with what is free of it."""
    share = provider["available"] / provider["size"] if provider["size"] else 0
    free = BAR * min(max(share, 0.0), 1.0) if provider["usable"] else 0
    yield f'<rect class="taken" x="{x:.1f}" y="{y + 9:.1f}" width="{BAR}" height="8" rx="2"/>'
    if free:
        yield f'<rect class="free" x="{x:.1f}" y="{y + 9:.1f}" width="{free:.1f}" height="8" rx="2"/>'
    label = size(provider["size"])
    yield _text(x + BAR + 6, y + 16.5, label, "soft small" if provider["usable"] else "warn small")


def _table(
    document: Document,
    lines: Sequence[Line],
    columns: Sequence[str],
    names: Mapping[str, str],
    left: float,
    top: float,
) -> Iterator[str]:
    cells = {(verdict["provider"], verdict["client"]): verdict for verdict in document["verdicts"]}
    for at, bdf in enumerate(columns):
        x = left + at * COLUMN + COLUMN / 2
        yield (
            f'<text class="ink" transform="translate({x + 4:.1f} {top - 8:.1f}) rotate(-90)">'
            f"{escape(names.get(bdf, bdf))}</text>"
        )
    if columns:
        yield _text(left, 32, TABLE_TITLE, "soft")
    for row, line in enumerate(lines):
        leaf = line.leaf
        if leaf is None:
            continue
        for at, bdf in enumerate(columns):
            verdict = cells.get((bdf, leaf["bdf"]))
            if verdict is not None:
                yield from _cell(verdict, left + at * COLUMN, top + row * ROW)


def _cell(verdict: Document, x: float, y: float) -> Iterator[str]:
    kind = verdict["map_type"]
    words = [f"{verdict['client']} from {verdict['provider']}: {kind}", verdict["reason"], verdict["remedy"]]
    title = "; ".join(word for word in (*words, *verdict["cautions"]) if word)
    yield f"<g><title>{escape(title)}</title>"
    yield f'<rect class="{kind}" x="{x + 1:.1f}" y="{y + 2:.1f}" width="{COLUMN - 2}" height="{ROW - 4}" rx="3"/>'
    label = str(verdict["cost"]) if verdict["ok"] else "×"
    if verdict["ok"] and (verdict["cautions"] or not verdict["certain"]):
        label += "!"
    yield _text(x + COLUMN / 2, y + 17, label, f"mid on-{kind}") + "</g>"


def _legend(y: float) -> tuple[list[str], float]:
    """Two lines, and how far they reach."""
    parts, x = [], float(MARGIN)
    for kind, label, words in KINDS:
        parts.append(f'<rect class="{kind}" x="{x:.1f}" y="{y:.1f}" width="22" height="16" rx="3"/>')
        parts.append(_text(x + 11, y + 12, label, f"mid on-{kind}"))
        parts.append(_text(x + 28, y + 12, words, "soft"))
        x += 28 + len(words) * CHAR + 22
    parts.append(_text(MARGIN, y + 34, SIGNS, "soft"))
    return parts, max(x - 22, MARGIN + len(SIGNS) * CHAR)
