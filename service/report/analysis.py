"""``oec analyze``: analyzes the output embeddings of kept weights, and evaluates the weights on other tokens."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table
from rich.text import Text

from dashboards import analysis
from dashboards.analysis import Analysis, cell_labels
from dashboards.drawing import can_draw
from dashboards.embeddings import Embedding, measure_embedding
from dashboards.files import FIGURE_FORMATS, NOT_DRAWN, save_figure, save_sheet
from dashboards.runs import records
from dashboards.tables import RENDERERS, format_value, heading_of
from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from service.home import copies
from service.home.layout import Home
from service.home.studies import read_ledger, require_study
from trainers import rows, tensor_files, weights
from trainers.data import Shards
from trainers.embedding_files import embeddings
from trainers.tensor_files import DamagedFile
from trainers.weights import KeptWeights

SHOWN = ("b_ratio", "mu_norm", "e_mu_min", "e_mu_max", "isotropy", "row_norm_mean")
"""Measures shown on the terminal; the tables have all of them."""
NOT_KEPT = (
    "set keep_weights: last in the study file; it applies to cells trained from then on, so cells that have ended must "
    "be trained again in another home"
)


@dataclass(frozen=True, kw_only=True)
class WeightsFile:
    """A file of kept weights, with the columns of its cell."""

    kept: KeptWeights
    study: str
    """The study that trained it."""
    row: dict[str, Any]
    """``CELL_COLUMNS``."""


def analyze(
    home: Home,
    study: str,
    console: Console,
    *,
    cells: Sequence[str] = (),
    shards: str | None = None,
    data: str | None = None,
    sequences: int | None = None,
) -> None:
    """Analyze the kept weights of a study. Prints tables, writes them into its folder, and rewrites its report.

    Results of an earlier analysis stay if they are for other cells, or for weights that no longer exist.

    Args:
        cells: ids of cells; empty: all cells with kept weights.
        shards: a glob of token files on which to evaluate the weights as well.
        data: the name of these tokens in tables; default: the glob.
        sequences: the number of sequences, from the first on; default: as many as the run's validation.

    Raises:
        InvalidInput: the study or a cell does not exist, no weights were kept, or the tokens do not fit the model.
    """
    from service.report.report import report
    from service.report.sources import load

    require_study(home, study)
    folder = home.study(study) / analysis.FOLDER
    copies.download_folder(home, f"studies/{study}/{analysis.FOLDER}")
    before = Analysis.read(folder)
    sources = list(_weight_files(home, study, cells, console))
    if not sources:
        raise InvalidInput("STUDY", study, "has no kept weights in this home", NOT_KEPT)
    tokens = _tokens(shards, sources, sequences) if shards else None
    found = Analysis.from_rows(_rows(home, sources, tokens, data or shards or "", sequences, console))
    print_tables(found, console)
    _merge(before, found).write(folder)
    copies.upload(home, folder)
    page = report(load(study, home), None, Console(quiet=True))
    copies.upload(home, page.parent)
    console.print(f"tables: {folder}\nreport: {page.resolve()}", soft_wrap=True, highlight=False)


def analyze_files(files: Sequence[Path], embedding: str | None, out: Path | None, console: Console) -> None:
    """Analyze files of weights from any source. Prints tables, and writes tables and figures into ``out``.

    Raises:
        InvalidInput: a file has no output embedding, or none with this name, or ``out`` cannot be written.
    """
    stems = [path.stem for path in files]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in files]
    if duplicates := {name for name in names if names.count(name) > 1}:
        raise InvalidInput("--weights", duplicates.pop(), "is given twice", "give each file once")
    by_table: dict[str, list[dict[str, Any]]] = {}
    for name, path in zip(names, files, strict=True):
        matrices = {which: measure_embedding(matrix) for which, matrix in embeddings(path, embedding).items()}
        _extend(by_table, analysis.table_rows({"cell": name}, matrices))
    found = Analysis.from_rows(by_table)
    print_tables(found, console)
    out = out or Path(f"{stems[0]}-analysis")
    try:
        found.write(out)
        for sheet in found.sheets():
            save_sheet(sheet, out / "tables", RENDERERS)
        chosen = analysis.representative_cells(found).items()
        by_cell = [(figure, cell, name) for figure in analysis.cell_figures(found) for cell, name in chosen]
        of_cells = [figure.for_cell(cell, name) for figure, cell, name in by_cell if cell in figure.data]
        for figure in [*analysis.b_ratio_figures(found), *of_cells]:
            save_figure(figure, out / "figures", FIGURE_FORMATS)
    except OSError as error:
        raise InvalidInput("--out", str(out), f"cannot be written ({error.strerror})", "choose a folder") from error
    if not can_draw():
        console.print(NOT_DRAWN, soft_wrap=True, highlight=False)
    console.print(f"tables and figures: {out.resolve()}", soft_wrap=True, highlight=False)


def print_tables(found: Analysis, console: Console) -> None:
    console.print(_table("Output embeddings", found.embeddings[found.embeddings["embedding"] == "output"], SHOWN))
    if not found.losses.empty:
        console.print(_table("Losses on other tokens", found.losses, ("data", "tokens", "loss", "val_loss")))


def _table(title: str, found: pd.DataFrame, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, padding=0)
    cells = found.assign(cell=cell_labels(found))
    varying = [name for name in ("scale", "seed", "step") if found[name].nunique() > 1]
    if found["lr"].notna().any():
        varying.append("lr")
    for name in ("cell", *varying, *columns):
        left = name in ("cell", "scale", "data")
        heading = "" if name == "cell" else heading_of(name).replace(" ", "\n", 1)
        table.add_column(heading, justify="left" if left else "right")
    for row in records(cells[["cell", *varying, *columns]]):
        table.add_row(*(Text(format_value(value, str(name))) for name, value in row.items()))
    return table


def _weight_files(home: Home, study: str, cells: Sequence[str], console: Console) -> Iterator[WeightsFile]:
    """The kept weights of the cells of a study, in the order of its ledger and of steps."""
    entries = read_ledger(home, study).entries
    if unknown := [cell for cell in cells if cell not in entries]:
        remedy = f"`oec status {study} --cells` lists them"
        raise InvalidInput("--cell", unknown[0], f"is not a cell of {study}", remedy)
    for cell_id in cells or entries:
        entry = entries[cell_id]
        trained_in = entry.reused_from or study
        copies.download_folder(home, f"studies/{trained_in}/cells/{cell_id}/{weights.FOLDER}", ".json")
        with warnings.catch_warnings(record=True) as skipped:
            found = list(weights.find_kept(home.cell(cell_id, trained_in) / weights.FOLDER, cell_id))
        for warning in skipped:
            console.print(str(warning.message), soft_wrap=True)
        for kept in found:
            row = {name: getattr(kept.cell, name, None) for name in analysis.CELL_COLUMNS}
            row |= {"cell": cell_id, "state": entry.state, "step": kept.step}
            yield WeightsFile(kept=kept, study=trained_in, row=row)


def _rows(
    home: Home,
    sources: Sequence[WeightsFile],
    tokens: Shards | None,
    data: str,
    sequences: int | None,
    console: Console,
) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of all sources, by table. Damaged files are reported and skipped."""
    if tokens:
        from service.report.evaluation import Evaluator  # imports torch, which takes seconds

        evaluate = Evaluator(tokens)
    by_table: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        kept, name = source.kept, f"studies/{source.study}/cells/{source.row['cell']}/{weights.FOLDER}"
        copies.download_folder(home, name, source.kept.path.name)
        try:
            tensor_files.read_verified(kept.path, kept.cell.id)
        except DamagedFile as why:
            console.print(f"weights {kept.path} skipped: {why}", soft_wrap=True)
            continue
        output = weights.TIED if kept.cell.model.tied else weights.OUTPUT
        found: dict[str, Embedding] = {"output": measure_embedding(embeddings(kept.path, output)["output"])}
        if not kept.cell.model.tied:
            found["input"] = measure_embedding(embeddings(kept.path, weights.TIED)["output"])
        _extend(by_table, analysis.table_rows(source.row, found))
        if tokens:
            loss, count = evaluate(kept, sequences)
            row = {"data": data, "digest": tokens.digest[:16], "tokens": count, "loss": loss}
            _extend(by_table, {"losses": [source.row | row | {"val_loss": _val_loss(home, source)}]})
        if home.bucket:
            kept.path.unlink()  # it may be large, and the bucket keeps it
    return by_table


def _extend(by_table: dict[str, list[dict[str, Any]]], more: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, rows_of_table in more.items():
        by_table.setdefault(name, []).extend(rows_of_table)


def _val_loss(home: Home, source: WeightsFile) -> float | None:
    """The validation loss of the run after the same step, if it was evaluated then."""
    cell_id = source.row["cell"]
    copies.download_metrics(home, [(cell_id, source.study)])
    found = [row for row in rows.read(home.metrics(cell_id, source.study)) if row.step == source.kept.step]
    return found[-1].val_loss if found else None


def _tokens(pattern: str, sources: Sequence[WeightsFile], sequences: int | None) -> Shards:
    """Open token files on which every cell can be evaluated.

    Raises:
        InvalidInput: they contain a token id beyond a cell's vocabulary, or too few tokens.
    """
    shards = Shards.match(pattern, "--shards")
    cells: list[Cell] = [source.kept.cell for source in sources]
    smallest = min(cell.V for cell in cells)
    try:
        shards.check_vocabulary(smallest)
    except InvalidInput as error:
        problem = f"contains token ids beyond the vocabulary size of {smallest}"
        raise InvalidInput("--shards", pattern, problem, "give shards made with the tokenizer of the study") from error
    for cell in cells:
        wanted = sequences or cell.training.eval_sequences
        if (have := shards.windows(T := cell.training.sequence_length)) < wanted:
            remedy = f"give --sequences {have}, or more tokens" if have else "give more tokens"
            problem = f"has {have} sequences of {T} tokens, but {wanted} are required"
            raise InvalidInput("--shards", pattern, problem, remedy)
    return shards


def _merge(before: Analysis | None, found: Analysis) -> Analysis:
    """``found``, plus the rows of ``before`` for other cells, steps and data."""
    if before is None:
        return found
    merged = {}
    for name in analysis.TABLES:
        old, new = getattr(before, name), getattr(found, name)
        key = ["cell", "step", *(["digest"] if name == "losses" else [])]
        replaced = set(map(tuple, new[key].astype(str).to_numpy()))
        as_new = old[key].astype({"step": new["step"].dtype}).astype(str)
        kept = [tuple(row) not in replaced for row in as_new.to_numpy()]
        parts = [part for part in (old[kept], new) if not part.empty]
        merged[name] = pd.concat(parts, ignore_index=True) if parts else new
    return Analysis(**merged)
