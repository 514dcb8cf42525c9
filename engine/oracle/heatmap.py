"""The report as one HTML page without libraries: a heat map of bits, layers down, values across."""

from __future__ import annotations

from html import escape

import numpy as np

from .injection import MAX_BITS
from .report import Report, Verdict, arithmetic_of
from .values import split_label

STYLE = """
body { font: 14px system-ui, sans-serif; margin: 2em; color: #222 }
table { border-collapse: collapse } th, td { padding: 3px 6px; text-align: center; font-weight: normal }
th.name { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left }
td.bits { min-width: 2.2em; border: 1px solid #fff } td.wrong { outline: 3px solid #b00; outline-offset: -3px }
details { margin: .3em 0 } summary { cursor: pointer } td a { color: inherit; text-decoration: none; display: block }
details td { padding: 1px 3px; font-size: 11px }
"""
MAX_DETAIL_ROWS = 256


def heatmap(report: Report, title: str) -> str:
    """Return the page.  Click on a value for its rows and heads."""
    found = {verdict.label: verdict for verdict in report.verdicts}
    names = list(dict.fromkeys(split_label(label)[0] for label in found if split_label(label)[1] >= 0))
    layers = sorted({split_label(label)[1] for label in found} - {-1})
    outside = [verdict for label, verdict in found.items() if split_label(label)[1] < 0]
    profile = "; ".join(f"{kind} {bits:.1f} bits: {arithmetic_of(bits)}" for kind, bits in report.profile.items())
    verdict = "no operation is wrong" if report.agrees else f"{len(report.wrong)} operations are wrong"
    head = "<tr><th></th>" + "".join(f'<th class="name">{escape(name)}</th>' for name in names) + "</tr>"
    rows = [f"<tr><th>{il}</th>{''.join(_cell(found.get(f'{name}-{il}')) for name in names)}</tr>" for il in layers]
    parts = [
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(title)}</title><style>{STYLE}</style>",
        f"<h1>{escape(title)}: {verdict}</h1><p>{escape(profile)}</p>",
        *(f"<p>{escape(note)}</p>" for note in report.notes),
        f"<table>{head}{''.join(rows)}</table>",
        "<table><tr>" + "".join(f"<th>{escape(v.label)}</th>{_cell(v)}" for v in outside) + "</tr></table>",
        "<h2>Wrong</h2>" if report.wrong else "",
        *(f"<p>{escape(_sentence(v))}</p>" for v in report.wrong),
        "<h2>Rows and heads</h2>",
        *(_details(v) for v in report.verdicts),
        "<h2>Not compared</h2>" if report.not_compared else "",
        *(f"<p>{escape(name[:200])}: {escape(reason)}</p>" for name, reason in report.not_compared.items()),
    ]
    return "\n".join(parts) + "</html>\n"


def _cell(verdict: Verdict | None) -> str:
    if verdict is None:
        return "<td></td>"
    wrong = " wrong" if verdict.wrong else ""
    link = f'<a href="#{escape(verdict.label, quote=True)}">{verdict.bits:.0f}</a>'
    return f'<td class="bits{wrong}" style="background:{color(verdict.bits)}">{link}</td>'


def color(bits: float) -> str:
    """Return a colour for so many bits: red at 0, yellow at 12, green at 24."""
    hue = 120 * float(np.clip(bits / 24, 0, 1))
    return f"hsl({hue:.0f} 70% 70%)"


def _sentence(verdict: Verdict) -> str:
    cause = f"as if {verdict.cause} ({verdict.cause_bits:.1f} bits)" if verdict.cause else "unexplained"
    return f"{verdict.label}: {verdict.bits:.1f} bits; {cause}"


def _details(verdict: Verdict) -> str:
    cells = np.where(np.isfinite(verdict.cells), verdict.cells, MAX_BITS)[:MAX_DETAIL_ROWS]
    rows = "".join(
        f"<tr><th>{t}</th>" + "".join(f'<td style="background:{color(bits)}">{bits:.0f}</td>' for bits in row) + "</tr>"
        for t, row in enumerate(cells.tolist())
    )
    name, note = escape(verdict.label, quote=True), escape(verdict.note)
    table = f'<table id="{name}">{rows}</table>'  # within, so that a link to it opens the details
    return f"<details><summary>{name}: {verdict.bits:.1f} bits {note}</summary>{table}</details>"
