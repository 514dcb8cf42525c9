"""Charts of results as one HTML file, by plotly, whose script is embedded: the page needs no network.

`bench report FILE... [--html FILE] [--csv FILE]` makes tables and charts of any files of results.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

from ..engine.errors import RequestError
from . import report
from .figures import FIGURES
from .knee import knee_lines
from .results import Run, read_runs
from .table import NamedTable, cell

CHARTED = ("output_tok_s", "tok_s", "ttft_p50", "tpot_p50", "gap_p99", "goodput_s")
STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem;color:#1f2328}"
    "table{border-collapse:collapse;font-variant-numeric:tabular-nums;margin:1rem 0}"
    "td,th{padding:.2rem .6rem;border-bottom:1px solid #d0d7de;text-align:left}"
    ".better{color:#1a7f37}.worse{color:#cf222e}p{white-space:pre-line}"
)


def bench_report(options: argparse.Namespace) -> int:
    """Run `bench report`.  Raises: RequestError"""
    runs = read_runs(options.files)
    if not any(run.rounds for run in runs):
        raise RequestError(f"{', '.join(map(str, options.files))}: no rounds")
    if not (options.html or options.csv):
        print("\n\n".join(report.to_text(run) for run in runs if run.rounds))
    write_files(runs, options.html, options.csv)
    return 0


def write_files(runs: Sequence[Run], html: Path | None, csv: Path | None) -> None:
    """Write the files that were asked for.  Raises: RequestError"""
    if html is not None:
        write_text(html, page_of([run for run in runs if run.rounds]))
    if csv is not None:
        write_text(csv, "\n".join(table.to_csv() for run in runs if run.rounds for table in report.tables_of(run)))


def write_text(path: Path, text: str) -> None:
    try:
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror}") from None


def require_plotly() -> Any:
    """Import plotly.  Raises: RequestError, which names the extra"""
    try:
        import plotly.graph_objects as plotly
    except ImportError:
        raise RequestError("--html needs plotly: pip install 'numllama[bench]'") from None
    return plotly


def page_of(runs: Sequence[Run]) -> str:
    """Return the page: for each run its tables, then its charts."""
    plotly = require_plotly()
    parts, script = list[str](), True
    for run in runs:
        parts.append(f"<h2>{escape(str(run.header['part']))}, {escape(str(run.header.get('started', '')))}</h2>")
        parts.append(f"<p>{escape(report.run_title(run))}</p>")
        parts += [html_table(table) for table in report.tables_of(run)]
        parts.append(f"<p>{escape(chr(10).join([*knee_lines(run), *run.notes]))}</p>")
        for figure in charts_of(run, plotly):
            parts.append(figure.to_html(full_html=False, include_plotlyjs=script, config={"displaylogo": False}))
            script = False  # once in a page
    return (
        '<!doctype html><html lang="en"><meta charset="utf-8"><title>numllama bench</title>'
        f"<style>{STYLE}</style><h1>numllama bench</h1>{''.join(parts)}</html>\n"
    )


def html_table(table: NamedTable) -> str:
    head = "".join(f"<th>{escape(column)}</th>" for column in table.columns)
    rows = "".join(f"<tr>{''.join(html_cell(row.get(c)) for c in table.columns)}</tr>" for row in table.rows)
    remarks = escape("\n".join(table.remarks))
    return f"<h3>{escape(table.title)}</h3><table><tr>{head}</tr>{rows}</table><p>{remarks}</p>"


def html_cell(value: Any) -> str:
    text = cell(value)
    better, worse = text in ("faster", "less"), text in ("slower", "more")
    mark = f' class="{"better" if better else "worse"}"' if better or worse else ""
    return f"<td{mark}>{escape(text)}</td>"


def charts_of(run: Run, plotly: Any) -> list[Any]:
    """Return the charts of a run: each figure over the cells, every round a point; or the Pareto front of formats."""
    if run.header["part"] == "formats":
        return [pareto_chart(run, plotly)]
    found = []
    for name in CHARTED:
        lines = [line for line in run.rounds if name in line["figures"]]
        if not lines:
            continue
        figure = FIGURES[name]
        chart = plotly.Figure()
        for contender in run.contenders:
            mine = [line for line in lines if line["contender"] == contender]
            values = [report.shown_value(figure, line["figures"][name]) for line in mine]
            texts = [f"round {line['round']}{', disturbed' if line['disturbed'] else ''}" for line in mine]
            chart.add_box(
                x=[line["cell"] for line in mine], y=values, name=contender, boxpoints="all", text=texts, pointpos=0
            )
        chart.update_layout(title=report.figure_label(figure), boxmode="group", height=380, yaxis_rangemode="tozero")
        chart.update_layout(yaxis_title=report.figure_label(figure), legend_title="contender")
        found.append(chart)
    return found


def pareto_chart(run: Run, plotly: Any) -> Any:
    """Return distance over speed, the formats on the front joined by a line."""
    points = report.format_points(run)
    chart = plotly.Figure()
    front = sorted((p for p in points if report.on_front(p, points)), key=lambda p: p.speed)
    chart.add_scatter(x=[p.speed for p in front], y=[p.kl for p in front], mode="lines", name="Pareto front")
    chart.add_scatter(
        x=[p.speed for p in points],
        y=[p.kl for p in points],
        text=[f"{p.name}, {p.size_mib:.3g} MiB" for p in points],
        mode="markers+text",
        textposition="top center",
        name="formats",
    )
    chart.update_layout(title="speed and distance", xaxis_title="decode, tok/s", yaxis_title="mean KL divergence, nats")
    return chart
