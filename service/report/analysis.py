"""``oec analyze``: the output embeddings of kept weights, and their loss on other tokens, into the study's report."""

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
from dashboards.charts import Figure
from dashboards.embeddings import Embedding, measure_embedding
from dashboards.files import FIGURE_FORMATS, NOT_DRAWN, can_draw, save_figure, save_sheet
from dashboards.runs import records
from dashboards.tables import HEADINGS, RENDERERS, format_value
from search_spaces.cell import Cell
from search_spaces.errors import InvalidInput
from service.home import copies
from service.home.layout import Home
from service.home.studies import read_ledger, require_study
from trainers import described, rows, weights
from trainers.data import Shards
from trainers.described import Damaged
from trainers.embedding_files import embeddings
from trainers.weights import Kept

SHOWN = ("b_ratio", "mu_norm", "e_mu_min", "e_mu_max", "isotropy", "row_norm_mean")
"""Measures that a terminal has room for; the tables have all."""
NOT_KEPT = (
    "set keep_weights: last in the study file; it holds for cells that are trained from then on, and those that have "
    "ended are trained again in another home only"
)


@dataclass(frozen=True, kw_only=True)
class Source:
    """A file of weights and the row of its cell."""

    kept: Kept
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
    """Analyze the kept weights of a study: tables to the terminal and into its folder, figures into its report.

    What an earlier analysis found of other cells, or of weights that are gone, stays.

    Args:
        cells: ids; all with kept weights if there are none.
        shards: a glob of token files that the weights are evaluated on as well.
        data: what the tables call them; the glob by default.
        sequences: how many of them, the first ones; as many as the run's own validation by default.

    Raises:
        InvalidInput: no such study or cell, nothing was kept, or the tokens do not fit.
    """
    from service.report.report import load, report

    require_study(home, study)
    folder = home.study(study) / analysis.FOLDER
    copies.download_folder(home, f"studies/{study}/{analysis.FOLDER}")
    before = Analysis.read(folder)
    sources = list(_sources(home, study, cells, console))
    if not sources:
        raise InvalidInput("STUDY", study, "has no kept weights in this home", NOT_KEPT)
    tokens = _tokens(shards, sources, sequences) if shards else None
    found = Analysis.from_rows(_rows(home, sources, tokens, data or shards or "", sequences, console))
    show(found, console)
    _merged(before, found).write(folder)
    copies.upload(home, folder)
    page = report(load(study, home), None, Console(quiet=True))
    copies.upload(home, page.parent)
    console.print(f"tables: {folder}\nreport: {page.resolve()}", soft_wrap=True, highlight=False)


def analyze_files(files: Sequence[Path], embedding: str | None, out: Path | None, console: Console) -> None:
    """The same of files of weights from anywhere: tables to the terminal, tables and figures into ``out``.

    Raises:
        InvalidInput: a file has no output embedding, or none of this name; ``out`` cannot be written.
    """
    stems = [path.stem for path in files]
    names = [path.stem if stems.count(path.stem) == 1 else str(path) for path in files]
    if twice := {name for name in names if names.count(name) > 1}:
        raise InvalidInput("--weights", twice.pop(), "is given twice", "give each file once")
    told: dict[str, list[dict[str, Any]]] = {}
    for name, path in zip(names, files, strict=True):
        matrices = {which: measure_embedding(matrix) for which, matrix in embeddings(path, embedding).items()}
        _add(told, analysis.table_rows({"cell": name}, matrices))
    found = Analysis.from_rows(told)
    show(found, console)
    out = out or Path(f"{stems[0]}-analysis")
    try:
        found.write(out)
        for sheet in found.sheets():
            save_sheet(sheet, out / "tables", RENDERERS)
        for figure in [*analysis.b_ratio_figures(found), *_of_files(found)]:
            save_figure(figure, out / "figures", FIGURE_FORMATS)
    except OSError as error:
        raise InvalidInput("--out", str(out), f"cannot be written ({error.strerror})", "choose a folder") from error
    if not can_draw():
        console.print(NOT_DRAWN, soft_wrap=True, highlight=False)
    console.print(f"tables and figures: {out.resolve()}", soft_wrap=True, highlight=False)


def _of_files(found: Analysis) -> Iterator[Figure]:
    chosen = analysis.representative_cells(found).items()
    for figure in analysis.cell_figures(found):
        yield from (figure.for_cell(cell, name) for cell, name in chosen if cell in figure.data)


def show(found: Analysis, console: Console) -> None:
    """The tables as a person reads them."""
    console.print(_table("Output embeddings", found.embeddings[found.embeddings["embedding"] == "output"], SHOWN))
    if not found.losses.empty:
        console.print(_table("Losses on other tokens", found.losses, ("data", "tokens", "loss", "val_loss")))


def _table(title: str, found: pd.DataFrame, columns: Sequence[str]) -> Table:
    table = Table(title=title, box=SIMPLE, padding=0)
    cells = found.assign(cell=cell_labels(found))
    told = [name for name in ("scale", "seed", "step") if found[name].nunique() > 1]
    if found["lr"].notna().any():
        told.append("lr")
    for name in ("cell", *told, *columns):
        left = name in ("cell", "scale", "data")
        heading = "" if name == "cell" else HEADINGS.get(name, name).replace(" ", "\n", 1)
        table.add_column(heading, justify="left" if left else "right")
    for row in records(cells[["cell", *told, *columns]]):
        table.add_row(*(Text(format_value(value, str(name))) for name, value in row.items()))
    return table


def _sources(home: Home, study: str, cells: Sequence[str], console: Console) -> Iterator[Source]:
    """The kept weights of the cells of a study, in the order of its ledger, by step."""
    entries = read_ledger(home, study).entries
    if unknown := [cell for cell in cells if cell not in entries]:
        remedy = f"`oec status {study} --cells` lists them"
        raise InvalidInput("--cell", unknown[0], f"is no cell of {study}", remedy)
    for cell_id in cells or entries:
        entry = entries[cell_id]
        of = entry.reused_from or study
        copies.download_folder(home, f"studies/{of}/cells/{cell_id}/{weights.FOLDER}", ".json")
        with warnings.catch_warnings(record=True) as passed_over:
            found = list(weights.kept(home.cell(cell_id, of) / weights.FOLDER, cell_id))
        for warning in passed_over:
            console.print(str(warning.message), soft_wrap=True)
        for kept in found:
            row = {name: getattr(kept.cell, name, None) for name in analysis.CELL_COLUMNS}
            row |= {"cell": cell_id, "state": entry.state, "step": kept.step}
            yield Source(kept=kept, study=of, row=row)


def _rows(
    home: Home,
    sources: Sequence[Source],
    tokens: Shards | None,
    data: str,
    sequences: int | None,
    console: Console,
) -> Mapping[str, list[dict[str, Any]]]:
    """The rows of all sources, by table. A file that is damaged is named and passed over."""
    evaluate = None
    if tokens:
        from service.report.evaluation import Evaluator  # imports torch: seconds

        evaluate = Evaluator(tokens)
    told: dict[str, list[dict[str, Any]]] = {}
    for source in sources:
        kept, name = source.kept, f"studies/{source.study}/cells/{source.row['cell']}/{weights.FOLDER}"
        copies.download_folder(home, name, source.kept.path.name)
        try:
            described.verified(kept.path, kept.cell.id)
        except Damaged as why:
            console.print(f"weights {kept.path} passed over: {why}", soft_wrap=True)
            continue
        output = weights.TIED if kept.cell.model.tied else weights.OUTPUT
        found: dict[str, Embedding] = {"output": measure_embedding(embeddings(kept.path, output)["output"])}
        if not kept.cell.model.tied:
            found["input"] = measure_embedding(embeddings(kept.path, weights.TIED)["output"])
        _add(told, analysis.table_rows(source.row, found))
        if evaluate and tokens:
            loss, count = evaluate(kept, sequences)
            told.setdefault("losses", []).append(
                source.row
                | {"data": data, "digest": tokens.digest[:16], "tokens": count, "loss": loss}
                | {"val_loss": _val_loss(home, source)}
            )
        if home.bucket:
            kept.path.unlink()  # it may be large, and the bucket has it
    return told


def _add(told: dict[str, list[dict[str, Any]]], more: Mapping[str, list[dict[str, Any]]]) -> None:
    for name, added in more.items():
        told.setdefault(name, []).extend(added)


def _val_loss(home: Home, source: Source) -> float | None:
    """The loss on the run's own validation tokens after the same step, if it was evaluated then."""
    cell_id = source.row["cell"]
    copies.download_metrics(home, [(cell_id, source.study)])
    found = [row for row in rows.read(home.metrics(cell_id, source.study)) if row.step == source.kept.step]
    return found[-1].val_loss if found else None


def _tokens(pattern: str, sources: Sequence[Source], sequences: int | None) -> Shards:
    """The shards, which every one of the cells can be evaluated on.

    Raises:
        InvalidInput: they hold an id beyond the vocabulary of a cell, or too few tokens.
    """
    shards = Shards.match(pattern, "--shards")
    cells: list[Cell] = [source.kept.cell for source in sources]
    smallest = min(cell.V for cell in cells)
    try:
        shards.check_vocabulary(smallest)
    except InvalidInput as error:
        problem = f"holds token ids that a vocabulary of {smallest} does not have"
        raise InvalidInput("--shards", pattern, problem, "give shards of the study's own tokenizer") from error
    for cell in cells:
        wanted = sequences or cell.training.eval_sequences
        if (have := shards.windows(T := cell.training.sequence_length)) < wanted:
            remedy = f"give --sequences {have}, or more tokens" if have else "give more tokens"
            problem = f"holds {have} sequences of {T} tokens, {wanted} needed"
            raise InvalidInput("--shards", pattern, problem, remedy)
    return shards


def _merged(before: Analysis | None, found: Analysis) -> Analysis:
    """``found``, and what ``before`` has of other cells, steps and data."""
    if before is None:
        return found
    merged = {}
    for name in analysis.TABLES:
        old, new = getattr(before, name), getattr(found, name)
        key = ["cell", "step", *(["digest"] if name == "losses" else [])]
        known = set(map(tuple, new[key].astype(str).to_numpy()))
        as_new = old[key].astype({"step": new["step"].dtype}).astype(str)
        stays = [tuple(row) not in known for row in as_new.to_numpy()]
        parts = [part for part in (old[stays], new) if not part.empty]
        merged[name] = pd.concat(parts, ignore_index=True) if parts else new
    return Analysis(**merged)
