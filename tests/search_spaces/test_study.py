"""Study files: YAML round trip, shipped studies, the frozen schema, and errors that name the field."""

from __future__ import annotations

import string
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from search_spaces.attention_norms import ATTENTION_NORMS
from search_spaces.errors import InvalidInput
from search_spaces.methods import METHODS
from search_spaces.plan import Plan
from search_spaces.refine import Budget
from search_spaces.scales import SCALES
from search_spaces.shipped import shipped
from search_spaces.study import NAME, Study
from search_spaces.tolerance import same_value
from search_spaces.training_spec import TrainingSpec

positive = st.floats(min_value=1e-7, max_value=1e3, allow_nan=False)
grids = (
    st.lists(positive, min_size=1, max_size=6, unique_by=lambda value: f"{value:.3g}")
    .map(sorted)
    .map(tuple)
    .filter(lambda grid: not any(same_value(a, b) for a, b in pairwise(grid)))
)


norms = st.lists(st.sampled_from(sorted(ATTENTION_NORMS)), min_size=1, max_size=2, unique=True)


@st.composite
def studies(draw: st.DrawFn) -> Study:
    methods = []
    for name in draw(st.lists(st.sampled_from(sorted(METHODS)), min_size=1, unique=True)):
        strength = METHODS[name].gamma
        methods.append({"method": name} | ({strength.symbol: draw(grids)} if strength and draw(st.booleans()) else {}))
    return Study.validate_fields(
        {
            "name": draw(st.from_regex(r"[a-z0-9][a-z0-9_-]{0,20}", fullmatch=True)),
            "scales": draw(st.lists(st.sampled_from(sorted(SCALES)), min_size=1, max_size=3, unique=True)),
            "attention_norms": draw(
                st.lists(st.sampled_from(sorted(ATTENTION_NORMS)), min_size=1, max_size=2, unique=True)
            ),
            "methods": methods,
            "lrs": draw(grids),
            "seeds": draw(st.integers(min_value=1, max_value=5)),
            "training": {"min_lr": 0, "batch_size": draw(st.integers(min_value=1, max_value=64))},
        }
    )


@given(studies())
def test_yaml_and_back(study: Study) -> None:
    assert Study.parse(study.to_yaml()) == study
    assert Study.parse(study.to_yaml()).hash == study.hash


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies(name: str) -> None:
    study = Study.load(name)
    assert study.name == name
    assert study.description
    assert Study.parse(study.to_yaml()) == study


def test_the_study_of_norms_compares_all_norms_at_the_time_of_its_publication() -> None:
    later = {"qk-clip", "reordered-norm", "reordered-qk-norm"}
    assert Study.load("norms").attention_norms == tuple(name for name in ATTENTION_NORMS if name not in later)


SHIPPED_HASHES = {
    "demo": ("ccdb1622052c", "17c37c2192dd", "322c5f46ac48"),
    "gamma": ("4eb0cfcbb829", "e0b301ee38f7", "514cd22283aa"),
    "miniature": ("a0d26cb4b68a", "283cb063c4ac", "834d62c9ed72"),
    "miniature-float32": ("2168d1dd94e0", "fd8789e6a781", "19bd0f43553e"),
    "norms": ("c72976fd451d", "456c833c5cb2", "cd418c6fd7db"),
    "paper": ("768b95029cad", "44dd14b5d6cd", "7315e79b8ad1"),
    "short": ("f3e37ef750b0", "cd1d1811430d", "18e185d2ea07"),
    "smoke": ("e4923e910a74", "0e6bce28ee9e", "ee0da14953d9"),
    "stressed": ("3719b145ae44", "f63335c149c1", "8b09024a150d"),
}
"""The study's hash and the ids of its first and last cell, with data of digest "data"."""


@pytest.mark.parametrize("name", SHIPPED_HASHES)
def test_a_home_of_an_older_version_keeps_its_studies_and_cells(name: str) -> None:
    """If a hash or an id changed, `oec run` would refuse the study or train its cells again."""
    study = Study.load(name)
    cells = Plan(study, "data").cells
    assert (study.hash, cells[0].id, cells[-1].id) == SHIPPED_HASHES[name]


@pytest.mark.parametrize(
    ("field", "value", "takes_effect_with"),
    [
        ("optimizer", "muon", {}),
        ("muon_lr_ratio", 2.0, {"optimizer": "muon"}),
        ("parametrization", "mup", {"mup_base": "nano"}),
        ("mup_base", "nano", {"parametrization": "mup", "mup_base": "tiny"}),
        ("cautious_weight_decay", True, {"weight_decay": 0.1}),
    ],
)
def test_a_field_that_changes_nothing_is_not_part_of_ids(
    field: str, value: object, takes_effect_with: dict[str, object]
) -> None:
    """A study may therefore set the field and vary what it belongs to, and still share its other cells with other
    studies."""
    fields = Study.load("smoke").model_dump()

    def study(**training: object) -> Study:
        return Study.validate_fields(fields | {"training": fields["training"] | training})

    def id_of(**training: object) -> str:
        return Plan(study(**training), "data").cells[0].id

    if field not in ("optimizer", "parametrization"):
        assert id_of(**{field: value}) == id_of()
        assert study(**{field: value}).hash != study().hash, "a factor of the study may give the field an effect"
    assert id_of(**takes_effect_with | {field: value}) != id_of(**takes_effect_with)


def test_a_study_of_optimizers_and_parametrizations_has_the_fields_of_both() -> None:
    factors = {"training.optimizer": ["adamw", "muon"], "training.parametrization": ["standard", "mup"]}
    fields = Study.load("smoke").model_dump() | {"factors": factors, "methods": ["baseline"]}
    fields["training"] |= {"muon_lr_ratio": 4.0, "mup_base": "nano"}
    cells = Plan(Study.validate_fields(fields), "data").cells
    assert len({cell.id for cell in cells}) == len(cells) == 4 * len(fields["lrs"])
    plain = Plan(Study.validate_fields(Study.load("smoke").model_dump() | {"methods": ["baseline"]}), "data").cells
    assert {cell.id for cell in plain} < {cell.id for cell in cells}


def test_published_studies_have_the_published_settings() -> None:
    for name in ("paper", "gamma"):
        study = Study.load(name)
        assert study.scales == ("16M", "29M", "57M", "109M", "221M")
        assert study.lrs == (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1)
        assert study.data.V == 50304
        spec = study.training
        assert (spec.steps, spec.batch_size, spec.sequence_length, spec.warmup_steps) == (100_000, 64, 2048, 5000)
        assert (spec.betas, spec.eps, spec.weight_decay, spec.grad_clip) == ((0.9, 0.95), 1e-8, 0.0, 1.0)
        assert (spec.schedule, spec.min_lr) == ("cosine", 1e-5)
        assert (spec.precision, spec.logits_dtype) == ("bfloat16", "bfloat16")
        assert spec.final_eval_sequences == 2_000 * 16
        assert (study.model.tied, study.model.init, study.model.dropout) == (False, "xavier", 0.0)
        defaults = TrainingSpec().model_copy(update={"final_eval_sequences": 32_000})
        assert spec == defaults, "the defaults must be the published settings"
    assert Study.load("gamma").methods[0].gamma == (1e-7, 1e-4, 1e-1, 1e2)


def test_numbers_without_a_dot_are_numbers() -> None:
    """YAML 1.1 reads 1e-4 as a string, but people write it as a number."""
    study = Study.parse(
        "{name: a, scales: [tiny], methods: [{method: z-loss, gamma: [1e-4]}], lrs: [1e-3], seeds: 2, refine: 4}"
    )
    assert study.methods[0].gamma == (1e-4,)
    assert study.seeds == (1, 2), "seeds may be given as a number"
    assert study.refine.trials == 4, "trials may be given as a number"


@pytest.mark.parametrize(("steps", "every"), [(5, 20), (160, 20), (1000, 50), (100_000, 5000)])
def test_a_short_run_is_evaluated_at_most_every_20_steps(steps: int, every: int) -> None:
    training = {"steps": steps, "warmup_steps": 0}
    study = Study.validate_fields(
        {"name": "s", "scales": ["tiny"], "methods": ["baseline"], "lrs": [1], "training": training}
    )
    (cell,) = Plan(study, "").cells
    assert (study.evaluate_every(cell), study.checkpoint_every(cell)) == (every, every)


def test_hash_ignores_fields_that_change_no_result() -> None:
    study = Study.load("smoke")
    other = Study.load("short")
    kept = Study.validate_fields(study.model_dump() | {"keep_weights": "last"})
    assert kept != study
    assert kept.hash == study.hash
    for field in ("description", "intervals", "resources"):
        assert study.model_copy(update={field: getattr(other, field)}).hash == study.hash
    refine = study.refine.model_copy(update={"edge": 1.2})
    more = refine.model_copy(update={"budget": Budget(cells=9)})
    assert study.model_copy(update={"refine": more}).hash == study.model_copy(update={"refine": refine}).hash
    for field in ("lrs", "methods", "data", "seeds", "training", "refine", "model"):
        changed = {"seeds": (7,), "refine": other.refine.model_copy(update={"trials": 3})}
        changed["model"] = other.model.model_copy(update={"tied": True})
        update = {field: changed.get(field, getattr(other, field))}
        assert Study.model_validate(study.model_copy(update=update).model_dump()).hash != study.hash, field


@given(st.text(alphabet=string.printable, max_size=80))
def test_any_text_is_a_study_or_a_clear_error(text: str) -> None:
    try:
        Study.parse(text)
    except InvalidInput as error:
        complete = bool(error.problem and error.remedy)
        assert complete, error  # noqa: PT017 (no error is fine as well)


@given(st.text(max_size=70))
def test_names_cannot_leave_a_folder(name: str) -> None:
    if NAME.fullmatch(name) and ".." not in name:
        assert "/" not in name
        assert not name.startswith(".")
    else:
        with pytest.raises(InvalidInput, match="name"):
            Study.validate_fields(Study.load("smoke").model_dump() | {"name": name})


def test_schema_of_a_study_file() -> None:
    """Frozen because users' files have these fields. A change needs a line in the changelog."""
    schema = Study.model_json_schema()
    fields = {name: sorted(part["properties"]) for name, part in schema["$defs"].items()}
    assert list(schema["properties"]) == [
        "name", "description", "trainer", "scales", "data", "attention_norms", "methods", "lrs", "factors", "lr_factor",
        "pair", "exclude", "seeds", "model", "training", "refine", "intervals", "resources", "keep_weights",
    ]  # fmt: skip
    assert fields == {
        "Budget": ["cells", "minutes"],
        "DataSpec": ["path", "source", "tokenizer", "validation", "vocab_size"],
        "GiveUp": ["above", "for"],
        "Intervals": ["checkpoint", "evaluate", "give_up"],
        "KeepWeights": ["every", "last"],
        "MethodChoice": ["gamma", "method"],
        "MetricsSpec": [
            "csv", "file", "mlflow", "others", "stdout", "step", "tensorboard", "train_loss", "val_loss",
        ],
        "ModelSpec": ["dropout", "init", "initial_mean_logit", "tied"],
        "RefineSpec": ["budget", "edge", "pruner", "sampler", "trials"],
        "ResourceSpec": [
            "autoscale", "compile", "concurrency", "cpus_per_worker", "gpus_per_worker", "max_failures", "workers",
        ],
        "TrainerSpec": [
            "command", "directory", "grace_s", "identity", "l_init", "metrics", "nodes", "options", "python", "resume",
            "resume_from", "silence_s",
        ],
        "TrainingSpec": [
            "batch_size", "betas", "cautious_weight_decay", "decay_share", "deterministic", "eps", "eval_sequences",
            "final_eval_sequences", "grad_clip", "logits_dtype", "min_lr", "muon_lr_ratio", "mup_base", "optimizer",
            "parametrization", "precision", "schedule", "sequence_length", "steps", "warmup_steps", "weight_decay",
            "weight_decay_mode",
        ],
    }  # fmt: skip


@pytest.mark.parametrize(
    ("written", "last", "every", "again"),
    [
        ("none", False, None, "none"),
        ("last", True, None, "last"),
        ({"last": True}, True, None, "last"),
        ({"every": 5}, True, 5, {"every": 5}),
    ],
)
def test_which_weights_are_kept(written: object, last: bool, every: int | None, again: object) -> None:
    study = Study.validate_fields(Study.load("smoke").model_dump() | {"keep_weights": written})
    assert (study.keep_weights.last, study.keep_weights.every) == (last, every)
    assert study.model_dump()["keep_weights"] == again
    assert Study.parse(study.to_yaml()) == study
    assert [step for step in range(1, 12) if study.keep_weights.at(step)] == ([5, 10] if every else [])


def test_the_pruner_is_not_part_of_the_hash_and_needs_something_to_prune() -> None:
    fields = Study.load("smoke").model_dump(mode="json") | {"refine": {"trials": 2}}
    pruning = fields | {"refine": {"trials": 2, "pruner": "median"}}
    assert Study.validate_fields(pruning).hash == Study.validate_fields(fields).hash
    with pytest.raises(InvalidInput, match=r"refine.pruner: 'median' requires refine.trials; set refine.trials"):
        Study.validate_fields(fields | {"refine": {"edge": 1.5, "pruner": "median"}})


@pytest.mark.parametrize(
    ("training", "message"),
    [
        ({"schedule": "wsd"}, "training.decay_share is missing, but schedule wsd requires it; set"),
        ({"decay_share": 0.2}, "training.decay_share: 0.2 does not apply to schedule cosine; remove it, or set"),
        ({"schedule": "wsd", "decay_share": 0.9, "warmup_steps": 50, "steps": 100}, "plus the 90 steps of the decay"),
        ({"weight_decay_mode": "coupled"}, "training.weight_decay_mode: 'coupled' requires training.weight_decay"),
        ({"weight_decay_mode": "coupled", "weight_decay": 0.1}, "times the largest learning rate 10 is 1 or more"),
        (
            {"optimizer": "muon", "muon_lr_ratio": 20.0, "weight_decay_mode": "coupled", "weight_decay": 0.01},
            "times the largest learning rate 200 is 1 or more",
        ),
        ({"parametrization": "mup"}, "training.mup_base is missing, but parametrization mup requires it; set"),
        (
            {"mup_base": "W96"},
            "training.mup_base: 'W96' is not a known scale; did you mean 'w96'? choose from nano, tiny",
        ),
        ({"optimizer": "sgd"}, "training.optimizer: 'sgd' is not allowed"),
        ({"optimizer": "muon", "muon_lr_ratio": 0}, "training.muon_lr_ratio: 0 is not allowed"),
        ({"schedule": "cosine", "min_lr": 1.0}, "training.min_lr 1 exceeds the smallest learning rate"),
        (
            {"precision": "tf32"},
            "training.precision tf32 needs an accelerator, and resources.gpus_per_worker is 0; remove",
        ),
        ({"deterministic": True}, "training.deterministic True needs an accelerator"),
        ({"schedule": "step"}, "training.schedule: 'step' is not allowed"),
    ],
)
def test_incompatible_training_fields(training: dict[str, object], message: str) -> None:
    study = {"name": "s", "scales": ["tiny"], "methods": ["baseline"], "lrs": [0.1, 10.0], "training": training}
    with pytest.raises(InvalidInput) as caught:
        Study.validate_fields(study)
    assert message in str(caught.value)


def test_a_constant_schedule_has_no_minimum_to_fall_to() -> None:
    training = {"schedule": "constant", "min_lr": 1.0}
    Study.validate_fields(
        {"name": "s", "scales": ["tiny"], "methods": ["baseline"], "lrs": [0.1], "training": training}
    )
