"""Pictures of looks: HTML without libraries for notebooks; figures by matplotlib (extra `notebook`)."""

from __future__ import annotations

import struct
import zlib
from base64 import b64encode
from collections.abc import Sequence
from html import escape
from typing import Any

import numpy as np

from ..errors import RequestError

INK, PAPER = (11, 83, 148), (255, 255, 255)  # of a heat map: 1 and 0
MAX_SIDE = 200  # rows and columns of a heat map in a notebook; later ones are left out


def table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """Return an HTML table."""
    top = "".join(f"<th>{escape(title)}</th>" for title in head)
    body = "".join(
        "<tr>" + "".join(f"<td style='text-align:left'>{escape(cell_text(cell))}</td>" for cell in row) + "</tr>"
        for row in rows
    )
    return f"<table><thead><tr>{top}</tr></thead><tbody>{body}</tbody></table>"


def cell_text(cell: Any) -> str:
    """Write a cell of a table, with blanks and line ends of tokens visible."""
    return visible(cell) if isinstance(cell, str) else f"{cell:.4g}" if isinstance(cell, float) else str(cell)


def visible(text: str) -> str:
    """Show line ends and tabs as signs."""
    return text.replace("\n", "\u21b5").replace("\t", "\u21e5")


def heat_map(
    values: np.ndarray, rows: Sequence[str], columns: Sequence[str], words: Sequence[Sequence[str]] | None = None
) -> str:
    """Return an HTML table whose cells are coloured by `values` in 0 .. 1, with `words` in them if given."""
    rows, columns = rows[:MAX_SIDE], columns[:MAX_SIDE]
    cells = []
    for i, row in enumerate(rows):
        line = [f"<th style='text-align:right;white-space:pre'>{escape(visible(row))}</th>"]
        for j, column in enumerate(columns[: values.shape[1]]):
            value = float(values[i, j])
            text = escape(visible(words[i][j])) if words else ""
            ink = "#fff" if value > 0.5 else "#000"
            title = escape(f"{visible(row)} / {visible(column)}: {value:.4f}", quote=True)
            style = f"background:{colour(value)};color:{ink};min-width:10px;padding:1px 3px;text-align:left"
            line.append(f"<td title='{title}' style='{style}'>{text}</td>")
        cells.append(f"<tr>{''.join(line)}</tr>")
    return f"<table style='border-collapse:collapse;font-size:11px'>{''.join(cells)}</table>"


def image(values: np.ndarray, scale: int = 4) -> str:
    """Return an HTML image of `values` [n, m] in 0 .. 1, a square of `scale` pixels for each."""
    t = np.clip(values, 0, 1)[:, :, None] ** 0.6
    pixels = (np.array(PAPER) + (np.array(INK) - np.array(PAPER)) * t).round().astype(np.uint8)
    pixels = pixels.repeat(scale, 0).repeat(scale, 1)
    height, width, _ = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # each row is unfiltered

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits, RGB; the PNG specification, section 11.2.2
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return f"<img width={width} height={height} src='data:image/png;base64,{b64encode(png).decode()}'>"


def colour(value: float) -> str:
    """Return the colour of a value in 0 .. 1."""
    t = min(max(value, 0.0), 1.0) ** 0.6  # so that small weights are seen, too
    return "#" + "".join(f"{round(a + (b - a) * t):02x}" for a, b in zip(PAPER, INK, strict=True))


def bar_table(names: Sequence[str], values: Sequence[float], unit: str) -> str:
    """Return an HTML table of horizontal bars."""
    top = max([*values, 1e-9])
    rows = "".join(
        f"<tr><th style='text-align:right'>{escape(name)}</th><td style='text-align:left'>"
        f"<span style='display:inline-block;height:.8em;width:{max(1, round(240 * value / top))}px;"
        f"background:{colour(1)}'></span> {value:.1f} {escape(unit)}</td></tr>"
        for name, value in zip(names, values, strict=True)
    )
    return f"<table style='font-size:11px'>{rows}</table>"


def pyplot() -> Any:
    """Import matplotlib.  Raises: RequestError, which names the extra"""
    try:
        import matplotlib.pyplot as plt
    except ImportError:
        raise RequestError("plot() needs matplotlib: pip install 'numllama[notebook]'") from None
    return plt


def plot_maps(maps: Sequence[np.ndarray], titles: Sequence[str], pieces: Sequence[str]) -> Any:
    """Draw maps side by side, four in a row, with the tokens on both axes; return the figure."""
    n_row = -(-len(maps) // 4)
    n_column = min(4, max(1, len(maps)))
    side = 5 if len(maps) == 1 else 3
    figure, axes = pyplot().subplots(n_row, n_column, figsize=(side * n_column, side * n_row), squeeze=False)
    for axis in axes.flat[len(maps) :]:
        axis.set_visible(False)
    for axis, values, title in zip(axes.flat, maps, titles, strict=False):
        axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
        axis.set_title(title, fontsize=9)
        if len(maps) == 1:
            axis.set_xticks(range(values.shape[1]), texts(pieces[: values.shape[1]]), rotation=90, fontsize=7)
            axis.set_yticks(range(len(values)), texts(pieces[: len(values)]), fontsize=7)
    figure.tight_layout()
    return figure


def plot_words(values: np.ndarray, words: Sequence[Sequence[str]], pieces: Sequence[str]) -> Any:
    """Draw a map of values [n_step, n_layer] with a word in each cell; return the figure."""
    n_step, n_layer = values.shape
    figure, axis = pyplot().subplots(figsize=(2 + 1.2 * n_layer, 1 + 0.28 * n_step))
    axis.imshow(values, cmap="Blues", vmin=0, vmax=1, aspect="auto")
    for i in range(n_step):
        for il in range(n_layer):
            ink = "white" if values[i, il] > 0.5 else "black"
            axis.text(il, i, texts([words[i][il]])[0], ha="center", va="center", color=ink, fontsize=7)
    axis.set_xticks(range(n_layer), [f"layer {il}" for il in range(n_layer)])
    axis.set_yticks(range(n_step), texts(pieces), fontsize=7)
    figure.tight_layout()
    return figure


def plot_bars(groups: Sequence[tuple[str, Sequence[str], np.ndarray]]) -> Any:
    """Draw groups (title, names, values) of bars one beside the other; return the figure."""
    figure, axes = pyplot().subplots(1, max(1, len(groups)), figsize=(2.6 * max(1, len(groups)), 3), squeeze=False)
    for axis, (title, names, values) in zip(axes[0], groups, strict=False):
        axis.barh(range(len(names)), values)
        axis.set_yticks(range(len(names)), texts(names), fontsize=7)
        axis.invert_yaxis()
        axis.set_title(title, fontsize=9)
    figure.tight_layout()
    return figure


def plot_stack(names: Sequence[str], values: np.ndarray, unit: str) -> Any:
    """Draw stacked bars of values [n_pass, n_name]; return the figure."""
    figure, axis = pyplot().subplots(figsize=(9, 4))
    bottom = np.zeros(len(values))
    for i, name in enumerate(names):
        axis.bar(range(len(values)), values[:, i], bottom=bottom, label=name, width=1)
        bottom += values[:, i]
    axis.set_xlabel("forward pass")
    axis.set_ylabel(unit)
    axis.legend(fontsize=6, ncols=3)
    figure.tight_layout()
    return figure


def texts(pieces: Sequence[str]) -> list[str]:
    """Return tokens as labels of an axis, in which `$` begins no formula."""
    shown = ("".join(c if c.isprintable() else "\u25a1" for c in visible(piece)) for piece in pieces)
    return [text.replace("$", r"\$") or "\u2205" for text in shown]
