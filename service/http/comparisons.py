"""Several studies over each other: their curves as figures of the report, and the tables of ``oec diff``."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from dashboards.comparison import compare, comparison_texts
from dashboards.runs import from_records
from dashboards.sensitivity import CurveFacts, curves
from dashboards.tables import join_words
from dashboards.views import lines
from search_spaces.errors import InvalidInput
from search_spaces.study import Study
from service.http.errors import ConcurrencyLimit
from service.http.feed import LedgerFeeds, Snapshot
from service.http.models import ChangeOut, Compared, ComparisonOut, FigureOut
from service.http.results import curve_facts
from service.http.studies import Studies


class Comparisons:
    """Comparisons of studies as their ledgers are now."""

    def __init__(self, studies: Studies, feeds: LedgerFeeds) -> None:
        self._studies, self._feeds = studies, feeds
        self._limit = ConcurrencyLimit("comparisons")

    def compare(self, names: Sequence[str]) -> Compared:
        """Draw the curves of the studies over each other, and compare each with the first.

        Raises:
            InvalidInput: a study is given twice, is damaged, or has another axis than the first.
            ApiError: 429, too many requests wait for a comparison.
        """
        if repeated := next((name for name in names if names.count(name) > 1), None):
            raise InvalidInput("study", repeated, "is given twice", "give each study once")
        with self._limit.slot():
            studies = [self._studies.load(name) for name in names]
            _require_one_axis(studies)
            snapshots = [self._feeds.get(name).read() for name in names]
            facts = [self._facts(*each) for each in zip(names, studies, snapshots, strict=True)]
            return Compared(
                studies=list(names),
                figures=_figures(names, studies, snapshots),
                comparisons=[
                    _comparison(names[0], name, facts[0], after)
                    for name, after in zip(names[1:], facts[1:], strict=True)
                ],
            )

    def _facts(self, name: str, study: Study, snapshot: Snapshot) -> list[CurveFacts]:
        return self._feeds.get(name).cached("facts", snapshot, partial(curve_facts, study))


def _require_one_axis(studies: Sequence[Study]) -> None:
    axes = {study.lr_factor: study.name for study in studies}
    if len(axes) > 1:
        problem = f"are over different axes, {join_words(list(axes))}, so they have no curves to compare"
        raise InvalidInput("study", join_words(list(axes.values())), problem, "choose studies with the same axis")


def _figures(names: Sequence[str], studies: Sequence[Study], snapshots: Sequence[Snapshot]) -> list[FigureOut]:
    """The figures of loss and LRS, as in a report of these studies."""
    from altair.utils.schemapi import debug_mode  # these imports take a second

    from dashboards.figures import curve_figures

    records = [
        entry.record(name) for name, snapshot in zip(names, snapshots, strict=True) for entry in snapshot.entries
    ]
    if not records:
        return []
    found = curves(from_records(records), {name: study.grid for name, study in zip(names, studies, strict=True)})
    with debug_mode(False):  # as in a report
        figures = curve_figures(lines(found), published=False)
    return [
        FigureOut(title=figure.title, view=figure.view or "", caption=figure.caption, spec=figure.spec)
        for figure in figures
    ]


def _comparison(
    before: str, after: str, facts_before: Sequence[CurveFacts], facts_after: Sequence[CurveFacts]
) -> ComparisonOut:
    found = compare(facts_before, facts_after)
    texts = comparison_texts(found, before, after)
    return ComparisonOut(
        before=before,
        after=after,
        rows=[ChangeOut.model_validate(row) for row in found.rows.to_dict("records")],
        texts=list(texts.rows),
        sentences=list(texts.sentences),
    )
