"""The tokens of a study, kept in the home."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.home import copies
from service.home.layout import Home
from trainers.data import MANIFEST, Tokens, prepare


def prepare_source(study: Study, home: Home, report: Callable[[str], None]) -> tuple[str, Tokens | None]:
    """Digest of what the cells of a study are trained by: of the tokens for the OEC model, which are prepared, or of
    the study's own trainer.

    Raises:
        InvalidInput: see ``prepare_tokens`` and ``TrainerSpec.digest``.
    """
    if study.trainer is not None:
        return study.trainer.digest(study.resources.workers), None
    tokens = prepare_tokens(study, home, report)
    return tokens.digest, tokens


def prepare_tokens(study: Study, home: Home, report: Callable[[str], None]) -> Tokens:
    """Prepare the tokens of a study in the home if needed, and check that they are intact and enough.

    Args:
        report: called with each line of progress.

    Raises:
        InvalidInput: the study has a trainer of its own, the text cannot be read, a token file is damaged, or there are
            too few tokens.
    """
    if study.trainer is not None:
        problem = f"is trained by {study.trainer.name}, which has its own data"
        raise InvalidInput("study", study.name, problem, "use `oec run`, or a study of the OEC model")
    tokens = prepare(study.data, home.path, fetch=partial(copies.download_once, home, last=MANIFEST), report=report)
    tokens.verify(home.path / "data" / "verified.json")
    for training in study.trainings:
        tokens.check_length(training)
    if tokens.folder:
        copies.upload(home, tokens.folder, MANIFEST)
    return tokens
