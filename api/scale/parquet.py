"""Batches as parquet: a row for each line, a column for each key (pip install pyarrow; it comes with 'numllama[ray]').

    in     custom_id, method, url: text; body: JSON as text, or a struct whose nulls count as missing
    out    id, custom_id: text; response: {status_code, request_id, body: JSON as text}; error: {code, message}

A folder counts as one table, its files in the order of their names, as Ray Data and Spark write them.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

from ...engine.errors import RequestError

ROWS_PER_GROUP = 1024  # that are in memory at once


def is_parquet(path: Path) -> bool:
    """Return whether a file is named as parquet."""
    return path.suffix == ".parquet"


def pyarrow() -> Any:
    """Import pyarrow with its parquet part.  Raises: RequestError"""
    try:
        import pyarrow.parquet
    except ImportError:
        raise RequestError("parquet needs pyarrow, which is not installed: pip install pyarrow") from None
    return pyarrow


def read_lines(path: Path) -> Iterator[bytes]:
    """Yield the rows of a file or folder as JSON lines.  Raises: RequestError"""
    pa = pyarrow()
    files = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
    if not files:
        raise RequestError(f"{path} has no .parquet files")
    for file in files:
        try:
            with pa.parquet.ParquetFile(file) as table:
                for batch in table.iter_batches(ROWS_PER_GROUP):
                    yield from map(line_of_row, batch.to_pylist())
        except OSError as error:
            raise RequestError(f"{file} cannot be read: {error.strerror or error}") from None
        except pa.ArrowException as error:
            raise RequestError(f"{file} cannot be read: {str(error).splitlines()[0]}") from None


def line_of_row(row: dict[str, Any]) -> bytes:
    """Return the JSON line of a row; columns that hold JSON as text become its values."""
    line = {key: without_nulls(value) for key, value in row.items() if value is not None or key != "method"}
    for holder, key in ((line, "body"), (line.get("response"), "body")):
        if isinstance(holder, dict) and isinstance(holder.get(key), str):
            try:
                holder[key] = json.loads(holder[key])
            except (ValueError, RecursionError):
                pass  # stays text, which the line's check refuses
    return json.dumps(line, ensure_ascii=False, default=str).encode()


def without_nulls(value: Any) -> Any:
    """Return `value` without the keys whose value is null: a struct column has every key in every row."""
    if isinstance(value, dict):
        return {key: without_nulls(one) for key, one in value.items() if one is not None}
    return [without_nulls(one) for one in value] if isinstance(value, list) else value


def write_answers(path: Path, lines: Iterable[bytes]) -> None:
    """Write answer lines as a parquet file, which appears when it is whole.  Raises: RequestError"""
    pa = pyarrow()
    response = pa.struct([("status_code", pa.int64()), ("request_id", pa.string()), ("body", pa.string())])
    error = pa.struct([("code", pa.string()), ("message", pa.string())])
    columns = pa.schema([("id", pa.string()), ("custom_id", pa.string()), ("response", response), ("error", error)])
    unfinished = path.with_name(f".{path.name}.unfinished")
    try:
        with pa.parquet.ParquetWriter(unfinished, columns) as writer:
            rows = map(row_of_line, lines)
            while group := list(islice(rows, ROWS_PER_GROUP)):
                writer.write_table(pa.Table.from_pylist(group, columns))
        os.replace(unfinished, path)
    except OSError as error:
        raise RequestError(f"{path} cannot be written: {error.strerror or error}") from None
    finally:
        unfinished.unlink(missing_ok=True)


def row_of_line(line: bytes) -> dict[str, Any]:
    """Return the row of an answer line."""
    row: dict[str, Any] = json.loads(line)
    if row["response"] is not None:
        row["response"]["body"] = json.dumps(row["response"]["body"], ensure_ascii=False)
    return row
