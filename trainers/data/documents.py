"""A stream of documents from any data set that ``datasets`` can read, on the Hub or in files on this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.errors import InvalidInput
from search_spaces.frozen import Frozen
from trainers.data.corpus import Corpus, local

if TYPE_CHECKING:
    import datasets

BATCH_DOCUMENTS = 64
HUB_TIMEOUT_S = 10.0
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
ALIASES: Mapping[str, tuple[str, str]] = {"fineweb": ("HuggingFaceFW/fineweb", "sample-10BT")}
"""Short names of data sets on the Hub: the full name and the default configuration."""
SAMPLE = re.compile(r"sample-(\d+)BT")
"""Configurations of the FineWeb family, whose names give their size in billions of GPT-2 tokens."""
READERS: Mapping[str, str] = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
"""The ``datasets`` reader for a file extension. A file with any other extension is one document, read as text."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
ERROR_OPTIONS = {"BuilderConfig": "--config", "Config name": "--config", "Bad split": "--split"}
"""How error messages of ``datasets`` begin, and the option that they are about."""


class StreamPosition(Frozen):
    """A position between two documents of a source."""

    rows: int = 0
    """Number of rows before the position."""
    stream: dict[str, Any] | None = None
    """The state of the ``datasets`` stream at the position; None at the start."""


class Batch(NamedTuple):
    """The non-empty documents after ``place``."""

    place: StreamPosition
    texts: list[str]
    left_out: int = 0
    """Rows after ``place`` that have no text."""


class Documents:
    """The texts of one column of a source, in order.

    Args:
        source: a name in ``ALIASES``, a file, folder or glob on this machine, or OWNER/NAME of a data set on the Hub.

    Raises:
        InvalidInput: there is no such file, and it is not a valid name on the Hub.
    """

    def __init__(self, source: str, *, config: str | None, split: str, column: str) -> None:
        self.split, self.column = split, column
        self._corpus: Corpus | None = None
        self.source, default_config = ALIASES.get(source, (source, None))
        self.config = config or default_config
        if source in ALIASES:
            return
        try:
            self._corpus = local(source, "SOURCE")
        except InvalidInput as error:
            if not HUB_NAME.fullmatch(source) or source.endswith((*READERS, *COMPRESSED)):
                remedy = "give a study, a file, a folder, a glob, or OWNER/NAME of a data set on the Hub"
                raise InvalidInput("SOURCE", source, error.problem, remedy) from None
            return
        if config:
            raise InvalidInput("--config", config, "cannot be combined with files on this machine", "omit it")
        self._reader = self._reader_of([document.path for document in self._corpus.files])

    @property
    def name(self) -> str:
        """A readable name that is valid as the name of a folder."""
        return self._corpus.name if self._corpus else self.source.split("/")[1].lower()

    def revision(self, pinned: str | None = None) -> str:
        """Identifies the content: a commit on the Hub (``pinned``, if given), or a digest of the files' names,
        sizes and modification times.

        Raises:
            InvalidInput: the Hub does not respond, or has no such data set.
        """
        if self._corpus:
            return self._corpus.fingerprint
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return str(HfApi().dataset_info(self.source, revision=pinned, timeout=HUB_TIMEOUT_S).sha)
        except HfHubHTTPError as error:
            problem, remedy = "is not a file here, and the Hub refused it", "check its name on the Hub, and HF_TOKEN"
            raise InvalidInput("SOURCE", self.source, f"{problem} ({_line(error)})", remedy) from error
        except Exception as error:  # the exceptions of its HTTP library
            problem = "is not a file here, and the Hub does not respond"
            remedy = "connect to the network, or give files on this machine"
            raise InvalidInput("SOURCE", self.source, f"{problem} ({_line(error)})", remedy) from error

    def rows(self) -> int | None:
        """Returns the total number of rows, or None if counting them would require reading them."""
        if not self._corpus or self._reader != "parquet":
            return None
        from pyarrow.parquet import read_metadata

        try:
            return sum(int(read_metadata(document.path).num_rows) for document in self._corpus.files)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def tokens(self) -> float | None:
        """Returns the approximate total of GPT-2 tokens, or None if the configuration's name does not give it."""
        sample = SAMPLE.fullmatch(self.config or "")
        return int(sample[1]) * 1e9 if sample else None

    def batches(self, revision: str, place: StreamPosition) -> Iterator[Batch]:
        """Yields the documents after ``place``.

        Raises:
            InvalidInput: the source cannot be read, or has no such configuration, split or text column.
        """
        try:
            stream = self._open(revision).with_format("arrow")
            if (features := stream.features) is not None:
                self._check(
                    features.arrow_schema
                )  # before threads read ahead, because a process that exits during that aborts
            if place.stream:
                stream.load_state_dict(place.stream)
            with closing(stream.iter(BATCH_DOCUMENTS)) as tables:
                for table in tables:
                    self._check(table.schema)
                    texts = table.column(self.column).to_pylist()
                    following = StreamPosition(rows=place.rows + len(texts), stream=stream.state_dict())
                    documents = [text for text in texts if text]
                    yield Batch(place, documents, len(texts) - len(documents))
                    place = following
        except InvalidInput:
            raise
        except Exception as error:  # the readers and file systems have no common exception class
            raise self._unreadable(error) from error

    def _reader_of(self, files: list[Path]) -> str:
        names = {path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name for path in files}
        readers = {READERS.get(Path(name).suffix, "text") for name in names}
        if len(readers) > 1:
            problem = f"has files of different formats ({', '.join(sorted(readers))})"
            raise InvalidInput("SOURCE", self.source, problem, "give a glob that matches one format")
        return readers.pop()

    def _open(self, revision: str) -> datasets.IterableDataset:
        import datasets

        datasets.config.TORCH_AVAILABLE = False  # else it imports torch, as a base class of its stream
        datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # it also raises everything that it logs
        if not self._corpus:
            return datasets.load_dataset(self.source, self.config, split=self.split, streaming=True, revision=revision)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it reports each use of a reader to the Hub
        files = {"train": [str(document.path) for document in self._corpus.files]}
        whole = {"sample_by": "document"} if self._reader == "text" else {}
        return datasets.load_dataset(self._reader, data_files=files, split=self.split, streaming=True, **whole)

    def _check(self, schema: Any) -> None:
        if self.column not in schema.names:
            problem, remedy = f"is not a column of {self.source}", f"columns: {', '.join(schema.names)}"
            raise InvalidInput("--column", self.column, problem, remedy)
        if (kind := str(schema.field(self.column).type)) not in ("string", "large_string"):
            raise InvalidInput("--column", self.column, f"holds {kind}, not text", "choose a text column")

    def _unreadable(self, error: Exception) -> InvalidInput:
        message = str(error)
        for start, option in ERROR_OPTIONS.items():
            if message.startswith(start):
                value = self.split if option == "--split" else self.config
                return InvalidInput(option, value, f"is not in {self.source}", _line(error))
        return InvalidInput(
            "SOURCE", self.source, f"cannot be read ({_line(error)})", "fix it and re-run the same command to resume"
        )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
