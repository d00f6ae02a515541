"""Reads the ``loss_overview*.csv`` files of the repository of arXiv 2601.02031.

Each row is one run, described by its name, e.g. ``wor40Z-16M-13p1B-100k-bs64-lr10-zloss-g1e-04-s1``. A name consists of
the project, one character each for scale, number of tokens and method, then scale, tokens, steps, batch size, learning
rate in units of 1e-4, method, gamma and seed. For tied weights, the method's letter is lower case and the method ends
in ``wt``.
"""

from __future__ import annotations

import re

import pandas as pd

from search_spaces.errors import InvalidInput

COLUMNS = {
    "test_loss": "val_loss",
    "time": "train_seconds",
    "O.mu norm": "output_mu_norm",
    "O.logits_mean_mean": "logits_mean",
    "O.logits_mean_std": "logits_std",
    "O.logits_mean_absmax": "logits_absmax",
    "H.mean_logsqZ": "log_z_squared",
    "O.centering_ratio": "output_b_ratio",
}
"""Our names for their columns; a file may lack any column but the first."""

METHODS = {
    "A": ("baseline", "baseline"),
    "Z": ("z-loss", "zloss"),
    "E": ("mu-loss", "muloss"),
    "R": ("mu-centering", "mucentering"),
    "S": ("soft-cap", "softcapping"),
}
"""By letter: our name for a method, and the name used in a run's name."""

EXAMPLE = "wor40Z-16M-13p1B-100k-bs64-lr10-zloss-g1e-04-s1"
LR_UNIT = "e-4"
_RUN = re.compile(
    r"[a-z]{3}\w\w(?P<letter>[A-Za-z])-(?P<scale>\d+[MB])-\d+(?:p\d+)?B-\d+k-bs\d+-lr(?P<lr>\d+(?:p\d+)?)"
    r"-(?P<word>[a-z]+?)(?P<tied>wt)?-g(?P<gamma>\d(?:p\d+)?e[+-]\d\d)-s(?P<seed>\d+)"
)
_CRASHED = "the file has no test_loss for it"


def is_loss_overview(table: pd.DataFrame) -> bool:
    return {"name", "test_loss", "O.mu norm"} <= set(table)


def as_runs(table: pd.DataFrame, study: str) -> pd.DataFrame:
    """``table`` with our columns added, values as text.

    A run without a loss was not evaluated; it did not diverge. Runs with tied weights become a separate study, because
    no other column tells them apart.

    Raises:
        InvalidInput: the table is empty, or a name does not describe a run.
    """
    if table.empty:
        raise InvalidInput("name", None, "has no runs", "give at least one row below the header")
    described = pd.DataFrame([_parse_name(name) for name in table["name"]], index=table.index)
    tied = described.pop("tied")
    evaluated = table["test_loss"].notna()
    return table.assign(
        **{ours: table[theirs] for theirs, ours in COLUMNS.items() if theirs in table},
        **{str(column): described[column] for column in described},
        study=tied.map({False: study, True: f"{study}, tied"}),
        state=evaluated.map({True: "finished", False: "crashed"}),
        reason=evaluated.map({True: None, False: _CRASHED}),
    )


def _parse_name(name: object) -> dict[str, str | bool]:
    match = _RUN.fullmatch(str(name))
    if match is None:
        raise InvalidInput("name", name, "does not describe a run", f"give a name like {EXAMPLE}")
    letter, word, tied = match["letter"], match["word"], match["tied"] is not None
    if letter.upper() not in METHODS:
        letters = ", ".join(f"{known} {theirs}" for known, (_, theirs) in METHODS.items())
        raise InvalidInput("name", name, f"has an unknown method letter, {letter}", f"choose from {letters}")
    method, theirs = METHODS[letter.upper()]
    if (word, tied) != (theirs, letter.islower()):
        expected = theirs + ("wt" if letter.islower() else "")
        problem = f"has the method letter {letter}, which means {expected}, but names another method"
        raise InvalidInput("name", name, problem, "correct the letter or the method")
    return {
        "scale": match["scale"],
        "method": method,
        "gamma": match["gamma"].replace("p", "."),
        "lr": match["lr"].replace("p", ".") + LR_UNIT,
        "seed": match["seed"],
        "tied": tied,
    }
