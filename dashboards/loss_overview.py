"""The ``loss_overview*.csv`` of the repository of arXiv 2601.02031, read as they are: one row a run, which its name
describes, e.g. ``wor40Z-16M-13p1B-100k-bs64-lr10-zloss-g1e-04-s1``.

The parts of a name are the project, one character each for scale, number of tokens and method, then scale, tokens,
steps, batch size, learning rate in units of 1e-4, method, gamma and seed. With tied weights the method's letter is a
lower-case one, and ``wt`` stands behind the method.
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
"""Their columns that are ours under another name; a file may lack any but the first."""

METHODS = {
    "A": ("baseline", "baseline"),
    "Z": ("z-loss", "zloss"),
    "E": ("mu-loss", "muloss"),
    "R": ("mu-centering", "mucentering"),
    "S": ("soft-cap", "softcapping"),
}
"""By letter: our name of a method, and theirs in the name of a run."""

EXAMPLE = "wor40Z-16M-13p1B-100k-bs64-lr10-zloss-g1e-04-s1"
LR_UNIT = "e-4"
_RUN = re.compile(
    r"[a-z]{3}\w\w(?P<letter>[A-Za-z])-(?P<scale>\d+[MB])-\d+(?:p\d+)?B-\d+k-bs\d+-lr(?P<lr>\d+(?:p\d+)?)"
    r"-(?P<word>[a-z]+?)(?P<tied>wt)?-g(?P<gamma>\d(?:p\d+)?e[+-]\d\d)-s(?P<seed>\d+)"
)
_CRASHED = "there is no test_loss in the file"


def is_loss_overview(table: pd.DataFrame) -> bool:
    """Whether a table that was read from a file is one of theirs."""
    return {"name", "test_loss", "O.mu norm"} <= set(table)


def as_runs(table: pd.DataFrame, study: str) -> pd.DataFrame:
    """``table`` with our columns beside its own, values as text.

    A run without a loss is one that was not evaluated, not one that diverged. Runs with tied weights, which differ in
    nothing else that a table of runs holds, are a study of their own.

    Raises:
        InvalidInput: there is no run, or a name that does not describe one.
    """
    if table.empty:
        raise InvalidInput("name", None, "holds no run", "give at least one row under the header")
    described = pd.DataFrame([_described(name) for name in table["name"]], index=table.index)
    tied = described.pop("tied")
    evaluated = table["test_loss"].notna()
    return table.assign(
        **{ours: table[theirs] for theirs, ours in COLUMNS.items() if theirs in table},
        **{str(column): described[column] for column in described},
        study=tied.map({False: study, True: f"{study}, tied"}),
        state=evaluated.map({True: "finished", False: "crashed"}),
        reason=evaluated.map({True: None, False: _CRASHED}),
    )


def _described(name: object) -> dict[str, str | bool]:
    found = _RUN.fullmatch(str(name))
    if found is None:
        raise InvalidInput("name", name, "does not describe a run", f"a name is like {EXAMPLE}")
    letter, word, tied = found["letter"], found["word"], found["tied"] is not None
    if letter.upper() not in METHODS:
        known = ", ".join(f"{known} {theirs}" for known, (_, theirs) in METHODS.items())
        raise InvalidInput("name", name, f"has an unknown method letter, {letter}", f"known are {known}")
    method, theirs = METHODS[letter.upper()]
    if (word, tied) != (theirs, letter.islower()):
        expected = theirs + ("wt" if letter.islower() else "")
        problem = f"has the method letter {letter}, which is {expected}, and another method"
        raise InvalidInput("name", name, problem, "correct the letter or the method")
    return {
        "scale": found["scale"],
        "method": method,
        "gamma": found["gamma"].replace("p", "."),
        "lr": found["lr"].replace("p", ".") + LR_UNIT,
        "seed": found["seed"],
        "tied": tied,
    }
