"""The field ``data`` of a study: where the tokens come from."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from search_spaces.errors import bad
from search_spaces.frozen import Frozen


class DataSpec(Frozen):
    """Where the tokens come from."""

    source: Literal["builtin", "text", "shards"] = Field(
        default="builtin",
        description="builtin: the source code of Python's standard library; text: local files; shards: token files.",
    )
    path: str | None = Field(
        default=None, description="text: a folder, a file or a glob; shards: a glob for the training shards."
    )
    validation: str | None = Field(
        default=None, description="shards: a glob for the validation shards, separate from the training shards."
    )
    tokenizer: Literal["bpe", "bytes", "gpt2"] = Field(
        default="bpe",
        description="builtin and text: byte-pair encoding trained on the text itself, plain bytes, or GPT-2's.",
    )
    vocab_size: int = Field(
        default=1024,
        ge=256,
        le=65_536,
        description="Number of token ids in use: the size of the vocabulary to train, or of the vocabulary that the "
        "shards were made with (50257 for GPT-2). The model pads it to a multiple of 64.",
    )

    @model_validator(mode="after")
    def _paths_belong_to_the_source(self) -> Self:
        wanted = {"builtin": (), "text": ("path",), "shards": ("path", "validation")}[self.source]
        for name in ("path", "validation"):
            if (getattr(self, name) is None) == (name in wanted):
                problem = "requires" if name in wanted else "does not take"
                raise bad(
                    f"{problem} data.{name}",
                    f"data.source {self.source} takes {' and '.join(wanted) or 'neither path nor validation'}",
                )
        return self

    @property
    def V(self) -> int:
        """Vocabulary size of the model: the number of token ids in use, padded to a multiple of 64."""
        used = {"bytes": 256, "gpt2": 50_257}.get(self.tokenizer, self.vocab_size)
        if self.source == "shards":
            used = self.vocab_size
        return -(-used // 64) * 64
