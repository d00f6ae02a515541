"""The tokens of a study, kept in the home."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from search_spaces.study import Study
from service.home import copies
from service.home.layout import Home
from trainers.data import MANIFEST, Tokens, prepare


def prepare_tokens(study: Study, home: Home, report: Callable[[str], None]) -> Tokens:
    """Prepare the tokens of a study in the home if needed, and check that they are intact and enough.

    Args:
        report: called with each line of progress.

    Raises:
        InvalidInput: the text cannot be read, a token file is damaged, or there are too few tokens.
    """
    tokens = prepare(study.data, home.path, fetch=partial(copies.download_once, home, last=MANIFEST), report=report)
    tokens.verify(home.path / "data" / "verified.json")
    for training in study.trainings:
        tokens.check_length(training)
    if tokens.folder:
        copies.upload(home, tokens.folder, MANIFEST)
    return tokens
