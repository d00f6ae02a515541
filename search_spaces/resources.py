"""The field ``resources`` of a study: what each cell runs on."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from search_spaces.errors import bad
from search_spaces.frozen import Frozen

GPU_UNIT = 1e-4
"""The smallest fraction of an accelerator that Ray can assign."""


class ResourceSpec(Frozen):
    """The resources that a cell runs on; they do not change its result."""

    workers: int = Field(default=1, gt=0, description="DDP workers per cell.")
    cpus_per_worker: int = Field(default=1, gt=0, description="CPU cores per worker.")
    gpus_per_worker: float = Field(
        default=0,
        ge=0,
        le=1,
        description="Accelerators per worker: 0 (gloo), 1 (NCCL), or a fraction for small cells with one worker; "
        "0.25 places four cells on a device.",
    )
    concurrency: int | None = Field(
        default=None, gt=0, description="Cells in parallel; default: as many as fit the cluster."
    )
    compile: bool | Literal["auto"] = Field(
        default="auto",
        description="Use torch.compile: on accelerators for model and head, with CUDA graphs; on CPUs for the model, "
        "or for the whole step if it is small and there is one worker. auto: only on accelerators, because on a CPU "
        "only long cells earn back the minute that compilation takes. If compilation fails, the cell runs in eager "
        "mode, with a warning.",
    )
    max_failures: int = Field(
        default=2,
        gt=0,
        description="After this many failures a cell is crashed; before that, it resumes from its checkpoint.",
    )
    autoscale: bool = Field(
        default=False,
        description="The cluster starts nodes on demand: the study requests concurrency cells in parallel, no matter "
        "how many nodes are up.",
    )

    @field_validator("gpus_per_worker")
    @classmethod
    def _ray_can_assign_it(cls, value: float) -> float:
        if abs(value - round(value / GPU_UNIT) * GPU_UNIT) > GPU_UNIT / 1000:
            raise bad(f"is not a multiple of {GPU_UNIT}, Ray's unit", "use fewer digits")
        return value

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if 0 < self.gpus_per_worker < 1 and self.workers > 1:
            raise bad(
                f"gives each of {self.workers} workers of a cell {self.gpus_per_worker:g} of a device, but NCCL "
                "refuses two ranks on one device",
                "set resources.workers to 1, or resources.gpus_per_worker to 1",
            )
        if self.autoscale and self.concurrency is None:
            raise bad(
                "sets autoscale without concurrency",
                "set resources.concurrency to the number of parallel cells that the cluster may grow to",
            )
        return self
