"""Writes parquet files with FineWeb's columns. The documents are the source files of Python's standard library."""

from __future__ import annotations

from pathlib import Path

import pyarrow
from pyarrow import parquet

from trainers.data.corpus import standard_library

COLUMNS = ("text", "id", "dump", "url", "date", "file_path", "language", "language_score", "token_count")


def texts(count: int) -> list[str]:
    """Returns the first ``count`` source files of the standard library that are shorter than 100,000 characters."""
    found = (document.text() for document in standard_library().files)
    return [text for text in found if text and len(text) < 100_000][:count]


def write(folder: Path, documents: list[str], *, files: int = 2, rows: int = 50) -> str:
    """Writes the documents to ``files`` files, with ``rows`` rows per row group; returns a glob for the files."""
    folder.mkdir(parents=True, exist_ok=True)
    share = -(-len(documents) // files)
    for number in range(files):
        part = documents[number * share : (number + 1) * share]
        table = pyarrow.table(
            {
                "text": part,
                "id": [f"<urn:uuid:{number}-{row}>" for row in range(len(part))],
                "dump": ["CC-MAIN-2013-20"] * len(part),
                "url": [f"http://example.org/{number}/{row}" for row in range(len(part))],
                "date": ["2013-05-18T05:48:54Z"] * len(part),
                "file_path": [f"s3://commoncrawl/{number:05}.warc.gz"] * len(part),
                "language": ["en"] * len(part),
                "language_score": [0.97] * len(part),
                "token_count": [len(text) // 4 for text in part],
            }
        )
        assert tuple(table.column_names) == COLUMNS
        parquet.write_table(table, folder / f"{number:03}_00000.parquet", row_group_size=rows)
    return str(folder / "*.parquet")
