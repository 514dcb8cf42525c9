"""A report as one HTML file: a table and charts as inline SVG, readable offline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path

from .report import cell

COLOURS = ("#1f6feb", "#d1502f", "#2b8a3e", "#8250df", "#9a6700", "#57606a")
WIDTH, HEIGHT, LEFT, BOTTOM = 460, 260, 56, 36
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1f2328}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #d0d7de;text-align:right}"
    "figure{display:inline-block;margin:1rem 1rem 0 0}figcaption{font-weight:600}"
)
Line = tuple[str, Sequence[tuple[float, float]]]  # name, points


def write_page(path: str | Path, title: str, about: Mapping, rows: Sequence[Mapping], columns: Sequence[str]) -> None:
    """Write a page for `rows` of benchmarks/server.py, which include sorted `ttfts` and `itls`."""
    charts = [
        chart("tokens a second", "", bars(rows, "total tok/s"), zero=True),
        chart("time to first token, all answers", "seconds", shares(rows, "ttfts")),
        chart("time between tokens, all answers", "seconds", shares(rows, "itls")),
    ]
    head = "".join(f"<th>{escape(column)}</th>" for column in columns)
    body = "".join("<tr>" + "".join(f"<td>{escape(cell(row.get(c)))}</td>" for c in columns) + "</tr>" for row in rows)
    facts = ", ".join(f"{key} {value}" for key, value in about.items())
    Path(path).write_text(
        f'<!doctype html><html lang="en"><meta charset="utf-8"><title>{escape(title)}</title><style>{STYLE}</style>'
        f"<h1>{escape(title)}</h1><p>{escape(facts)}</p><table><tr>{head}</tr>{body}</table>{''.join(charts)}</html>\n",
        encoding="utf-8",
    )


def bars(rows: Sequence[Mapping], key: str) -> list[Line]:
    """Return one line per server, its points over the loads in their order."""
    loads = list(dict.fromkeys(row["load"] for row in rows))
    names = list(dict.fromkeys(row["server"] for row in rows))
    return [
        (name, [(loads.index(row["load"]) + 1.0, row[key]) for row in rows if row["server"] == name]) for name in names
    ]


def shares(rows: Sequence[Mapping], key: str) -> list[Line]:
    """Return a cumulative distribution, in percent of the answers, for each load and server."""
    return [
        (f"{row['server']}, {row['load']}", [(x, 100 * (i + 1) / len(row[key])) for i, x in enumerate(row[key])])
        for row in rows
    ]


def chart(title: str, unit: str, lines: Sequence[Line], zero: bool = False) -> str:
    """Draw lines over common axes that begin at 0, as SVG."""
    most_x = max(x for _, points in lines for x, _ in points) or 1.0
    most_y = max(y for _, points in lines for _, y in points) or 1.0

    def place(x: float, y: float) -> str:
        across = LEFT + x / most_x * (WIDTH - LEFT - 8)
        return f"{across:.1f},{HEIGHT - BOTTOM - y / most_y * (HEIGHT - BOTTOM - 8):.1f}"

    drawn = [f'<path d="M{LEFT},8V{HEIGHT - BOTTOM}H{WIDTH - 8}" fill="none" stroke="#8c959f"/>']
    for part in (0, 0.5, 1):
        x, y = place(part * most_x, 0).split(",")[0], place(0, part * most_y).split(",")[1]
        drawn.append(f'<text x="{x}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{part * most_x:.3g}</text>')
        drawn.append(f'<text x="{LEFT - 6}" y="{float(y) + 4}" text-anchor="end">{part * most_y:.3g}</text>')
    for i, (name, points) in enumerate(lines):
        colour = COLOURS[i % len(COLOURS)]
        path = " ".join(place(x, y) for x, y in points)
        drawn.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        if zero:
            drawn += [
                f'<circle cx="{x}" cy="{y}" r="4" fill="{colour}"/>' for x, y in (place(*p).split(",") for p in points)
            ]
        drawn.append(f'<text x="{LEFT + 8}" y="{20 + 15 * i}" fill="{colour}">{escape(name)}</text>')
    drawn.append(f'<text x="{WIDTH - 8}" y="{HEIGHT - 4}" text-anchor="end">{escape(unit)}</text>')
    size = f'width="{WIDTH}" height="{HEIGHT}" viewBox="0 0 {WIDTH} {HEIGHT}"'
    return f'<figure><figcaption>{escape(title)}</figcaption><svg {size} font-size="12">{"".join(drawn)}</svg></figure>'
