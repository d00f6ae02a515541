"""Documents as a stream: any data set that ``datasets`` reads, from its Hub or from files of this machine."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import closing
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from search_spaces.cell import Frozen
from search_spaces.errors import InvalidInput
from trainers.data.corpus import Corpus, local

if TYPE_CHECKING:
    import datasets

BATCH_DOCUMENTS = 64
HUB_TIMEOUT_S = 10.0
HUB_NAME = re.compile(r"[\w.-]+/[\w.-]+")
KNOWN: Mapping[str, tuple[str, str]] = {"fineweb": ("HuggingFaceFW/fineweb", "sample-10BT")}
"""Short names of data sets of the Hub: the name there, and the configuration unless another is asked for."""
SAMPLE = re.compile(r"sample-(\d+)BT")
"""Configurations of the FineWeb family, named by their billions of GPT-2 tokens."""
READERS: Mapping[str, str] = {".parquet": "parquet", ".jsonl": "json", ".ndjson": "json", ".json": "json"}
"""The reader of ``datasets`` for an ending. A file of any other ending is one document, as text."""
COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
BLAMED = {"BuilderConfig": "--config", "Config name": "--config", "Bad split": "--split"}
"""How messages of ``datasets`` begin, and the option that they are about."""


class Place(Frozen):
    """Between two documents of a source."""

    rows: int = 0
    """Rows before it."""
    stream: dict[str, Any] | None = None
    """The state of ``datasets`` there; None at the start."""


class Batch(NamedTuple):
    """The next documents from ``place`` on, without those that are empty."""

    place: Place
    texts: list[str]


class Documents:
    """The texts of one column of a source, in its order.

    Args:
        source: a name of ``KNOWN``, a file, folder or glob of this machine, or OWNER/NAME of a data set of the Hub.

    Raises:
        InvalidInput: nothing of this name is here, or could be on the Hub.
    """

    def __init__(self, source: str, *, config: str | None, split: str, column: str) -> None:
        self.split, self.column = split, column
        self._corpus: Corpus | None = None
        self.source, usual = KNOWN.get(source, (source, None))
        self.config = config or usual
        if source in KNOWN:
            return
        try:
            self._corpus = local(source, "SOURCE")
        except InvalidInput as error:
            if not HUB_NAME.fullmatch(source) or source.endswith((*READERS, *COMPRESSED)):
                remedy = "give a study, a file, a folder, a glob, or OWNER/NAME of a data set of the Hub"
                raise InvalidInput("SOURCE", source, error.problem, remedy) from None
            return
        if config:
            raise InvalidInput("--config", config, "does not go with files of this machine", "leave it out")
        self._reader = self._reader_of([document.path for document in self._corpus.files])

    @property
    def name(self) -> str:
        """Readable, and fit for a folder."""
        return self._corpus.name if self._corpus else self.source.split("/")[1].lower()

    def revision(self, pinned: str | None = None) -> str:
        """What the source is: a commit of the Hub (``pinned``, if it is there), or a digest of the files' names, sizes
        and times of change.

        Raises:
            InvalidInput: the Hub does not answer, or has no such data set.
        """
        if self._corpus:
            return self._corpus.fingerprint
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            return str(HfApi().dataset_info(self.source, revision=pinned, timeout=HUB_TIMEOUT_S).sha)
        except HfHubHTTPError as error:
            problem, remedy = "is no file here and refused by the Hub", "see its name there, and HF_TOKEN"
            raise InvalidInput("SOURCE", self.source, f"{problem} ({_line(error)})", remedy) from error
        except Exception as error:  # whatever its HTTP library raises
            problem, remedy = "is no file here, and the Hub does not answer", "connect, or give files of this machine"
            raise InvalidInput("SOURCE", self.source, f"{problem} ({_line(error)})", remedy) from error

    def rows(self) -> int | None:
        """Rows in all, where they are known without reading them."""
        if not self._corpus or self._reader != "parquet":
            return None
        from pyarrow.parquet import read_metadata

        try:
            return sum(int(read_metadata(document.path).num_rows) for document in self._corpus.files)
        except (OSError, ValueError) as error:
            raise self._unreadable(error) from error

    def tokens(self) -> float | None:
        """About how many GPT-2 tokens in all, where the configuration's name says so."""
        sample = SAMPLE.fullmatch(self.config or "")
        return int(sample[1]) * 1e9 if sample else None

    def batches(self, revision: str, place: Place) -> Iterator[Batch]:
        """The documents from ``place`` on.

        Raises:
            InvalidInput: the source can not be read, or has no such configuration, split or column of text.
        """
        try:
            stream = self._open(revision).with_format("arrow")
            if (features := stream.features) is not None:
                self._check(features.arrow_schema)  # before threads read ahead: a process that ends meanwhile aborts
            if place.stream:
                stream.load_state_dict(place.stream)
            with closing(stream.iter(BATCH_DOCUMENTS)) as tables:
                for table in tables:
                    self._check(table.schema)
                    texts = table.column(self.column).to_pylist()
                    behind = Place(rows=place.rows + len(texts), stream=stream.state_dict())
                    yield Batch(place, [text for text in texts if text])
                    place = behind
        except InvalidInput:
            raise
        except Exception as error:  # readers of all formats over all file systems: their errors have no common base
            raise self._unreadable(error) from error

    def _reader_of(self, files: list[Path]) -> str:
        endings = {path.name.removesuffix(path.suffix) if path.suffix in COMPRESSED else path.name for path in files}
        readers = {READERS.get(Path(name).suffix, "text") for name in endings}
        if len(readers) > 1:
            problem = f"has files for different readers ({', '.join(sorted(readers))})"
            raise InvalidInput("SOURCE", self.source, problem, "give a glob that matches those of one kind")
        return readers.pop()

    def _open(self, revision: str) -> datasets.IterableDataset:
        import datasets

        datasets.config.TORCH_AVAILABLE = False  # else it imports torch, for its stream to inherit from a class of it
        datasets.utils.logging.set_verbosity(datasets.utils.logging.CRITICAL)  # what it logs, it raises too
        if not self._corpus:
            return datasets.load_dataset(self.source, self.config, split=self.split, streaming=True, revision=revision)
        datasets.config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else it tells the Hub of each use of a reader
        files = {"train": [str(document.path) for document in self._corpus.files]}
        whole = {"sample_by": "document"} if self._reader == "text" else {}
        return datasets.load_dataset(self._reader, data_files=files, split=self.split, streaming=True, **whole)

    def _check(self, schema: Any) -> None:
        if self.column not in schema.names:
            problem, remedy = f"is no column of {self.source}", f"columns: {', '.join(schema.names)}"
            raise InvalidInput("--column", self.column, problem, remedy)
        if (kind := str(schema.field(self.column).type)) not in ("string", "large_string"):
            raise InvalidInput("--column", self.column, f"holds {kind}, not text", "choose a column of text")

    def _unreadable(self, error: Exception) -> InvalidInput:
        message = str(error)
        for start, option in BLAMED.items():
            if message.startswith(start):
                value = self.split if option == "--split" else self.config
                return InvalidInput(option, value, f"is not in {self.source}", _line(error))
        return InvalidInput(
            "SOURCE", self.source, f"can not be read ({_line(error)})", "mend it; the same command goes on"
        )


def _line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
