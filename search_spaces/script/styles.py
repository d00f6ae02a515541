"""How training scripts take settings: one entry per style. The first that matches a script counts."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from search_spaces.script.argument import KINDS, Argument, Separator, kind_of
from search_spaces.script.declarations import Definition, Spelling, declared, definitions
from search_spaces.script.help_text import from_config, from_help
from search_spaces.script.hydra import compose, config_files
from search_spaces.script.source import Sources, called, calls, dotted, executed_file, keyword, literal

ACTIONS_WITHOUT_VALUE = ("store_true", "store_false", "store_const", "count", "BooleanOptionalAction")
TRAINING_ARGUMENTS: dict[str, Any] = {
    "output_dir": None, "learning_rate": 5e-5, "seed": 42, "weight_decay": 0.0, "max_steps": -1, "warmup_steps": 0,
    "num_train_epochs": 3.0, "lr_scheduler_type": "linear", "adam_beta1": 0.9, "adam_beta2": 0.999,
    "adam_epsilon": 1e-8, "max_grad_norm": 1.0, "per_device_train_batch_size": 8, "optim": "adamw_torch",
    "logging_steps": 500.0, "eval_steps": None, "resume_from_checkpoint": None, "report_to": None,
    "label_smoothing_factor": 0.0,
}  # fmt: skip
"""Fields of transformers.TrainingArguments (5.x) that matter here, for a machine where the script's --help fails."""


@dataclass(frozen=True)
class Style:
    """One way to read the command line."""

    name: str
    matches: Callable[[Sources], bool]
    read: Callable[[Sources], tuple[Argument, ...]]
    """The arguments that the text declares."""
    separator: Separator = " "
    """What stands between flag and value."""
    help_words: tuple[str, ...] = ("--help",)
    """What makes the script print its arguments and end; empty if it would train instead."""
    parse_help: Callable[[str, Separator], tuple[Argument, ...]] = from_help
    """Reads what it then prints."""
    files: Callable[[Sources], tuple[Path, ...]] = lambda sources: ()
    """Further files that decide what the script does: configurations."""
    help_codes: tuple[int, ...] = (0,)
    """Exit codes with which it has printed its arguments."""
    subcommand: str = ""
    """What stands between the script and its arguments."""


def style_of(sources: Sources) -> Style:
    """The first style that matches and declares arguments, or else the first that matches: scripts import more than one
    such library. The last entry takes every script."""
    matching = [style for style in STYLES if style.matches(sources)]
    return next((style for style in matching if style.read(sources)), matching[0])


def subcommands(sources: Sources) -> list[str]:
    """Names of the commands of a click or typer group, or of argparse's subparsers."""
    decorated = _decorated(definitions(sources), "command")
    added = [literal(node.args[0]) for _, node in calls(sources, "add_parser") if node.args]
    return [definition.name.replace("_", "-") for definition in decorated] + [str(name) for name in added if name]


def _uses(*modules: str) -> Callable[[Sources], bool]:
    """Whether any source imports one of these modules, or something from them."""

    def matches(sources: Sources) -> bool:
        names = {name for source in sources for name in source.imports}
        return any(name == module or name.startswith(module + ".") for name in names for module in modules)

    return matches


def _calls_any(*names: str) -> Callable[[Sources], bool]:
    return lambda sources: any(True for _ in calls(sources, *names))


def _executes_a_configurator(sources: Sources) -> bool:
    return any(executed_file(node) for node in sources[0].walk(ast.Call))


def _globals(sources: Sources) -> tuple[Argument, ...]:
    """nanoGPT: module-level constants, which ``--key=value`` overrides."""
    found = {}
    for node in sources[0].tree.body:
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call) and executed_file(node.value):
            break
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            value = literal(node.value)
            if isinstance(value, bool | int | float | str):
                name = node.targets[0].id
                found[name] = Argument(flag=f"--{name}", default=value, kind=kind_of(value), separator="=")
    return tuple(found.values())


def _argparse(sources: Sources) -> tuple[Argument, ...]:
    found = []
    for _, node in calls(sources, "add_argument", "add_arg"):
        names = [value for value in map(literal, node.args) if isinstance(value, str)]
        if not names:
            continue
        default, action = literal(keyword(node, "default")), keyword(node, "action")
        action_name = literal(action) or dotted(action).rpartition(".")[2]
        kind = KINDS.get(dotted(keyword(node, "type")).rpartition(".")[2].lower())
        positional = not names[0].startswith("-")
        optional = literal(keyword(node, "nargs")) in ("?", "*")
        choices = literal(keyword(node, "choices"))
        found.append(
            Argument(
                flag=max((name for name in names if name.startswith("--")), key=len, default=names[0]),
                default=False if action_name == "store_true" else default,
                kind=kind or kind_of(default),
                separator="" if positional else " ",
                choices=tuple(choices) if isinstance(choices, list | tuple) else (),
                required=literal(keyword(node, "required")) is True or (positional and not optional),
                is_switch=action_name in ACTIONS_WITHOUT_VALUE,
            )
        )
    return tuple(found)


def _hf(sources: Sources) -> tuple[Argument, ...]:
    """The dataclasses given to HfArgumentParser or TrlParser; those of a library, and bases, are TrainingArguments."""
    known = definitions(sources)
    library: list[Argument] = []
    own: list[Argument] = []
    for _, node in calls(sources, "HfArgumentParser", "TrlParser"):
        for name in (dotted(inner) for inner in ast.walk(node) if isinstance(inner, ast.Name | ast.Attribute)):
            definition = known.get(name.rpartition(".")[2])
            bases = [name]
            if isinstance(definition, ast.ClassDef):
                own += declared(definition, known, Spelling())
                bases = [dotted(base) for base in definition.bases]
            if any(base.endswith(("TrainingArguments", "SFTConfig", "DPOConfig")) for base in bases):
                library += [
                    Argument(flag=f"--{field}", default=value, kind=kind_of(value), required=field == "output_dir")
                    for field, value in TRAINING_ARGUMENTS.items()
                ]
    return tuple({argument.flag: argument for argument in (*library, *own)}.values())


def _given_to(spelling: Spelling, *functions: str) -> Callable[[Sources], tuple[Argument, ...]]:
    """The dataclass or function that is given to ``tyro.cli``, ``typer.run`` or ``fire.Fire``."""

    def read(sources: Sources) -> tuple[Argument, ...]:
        known = definitions(sources)
        for _, node in calls(sources, *functions):
            definition = known.get(dotted(node.args[0]).rpartition(".")[2]) if node.args else None
            if definition:
                return tuple(declared(definition, known, spelling))
        return ()

    return read


def _decorated(known: dict[str, Definition], name: str) -> list[Definition]:
    """Functions with the decorator ``@app.NAME(...)`` or ``@NAME(...)``."""
    return [
        definition
        for definition in known.values()
        for decorator in definition.decorator_list
        if isinstance(decorator, ast.Call) and called(decorator) == name
    ]


def _typer(sources: Sources) -> tuple[Argument, ...]:
    known, spelling = definitions(sources), Spelling(dashes=True, switches=True)
    run = _given_to(spelling, "run")(sources)
    if run:
        return tuple(_as_positional(run))
    commands = _decorated(known, "command")
    return tuple(_as_positional(tuple(declared(commands[0], known, spelling)))) if commands else ()


def _as_positional(arguments: tuple[Argument, ...]) -> Iterator[Argument]:
    """A parameter without a default is a positional argument in typer, unless it names a flag."""
    for argument in arguments:
        if argument.required and argument.default is None:
            yield argument.model_copy(update={"flag": argument.flag.lstrip("-").replace("-", "_"), "separator": ""})
        else:
            yield argument


def _click(sources: Sources) -> tuple[Argument, ...]:
    found = []
    for _, node in calls(sources, "option", "argument"):
        names = [part for value in map(literal, node.args) if isinstance(value, str) for part in value.split("/")]
        default = literal(keyword(node, "default"))
        kind = KINDS.get(dotted(keyword(node, "type")).rpartition(".")[2].lower())
        option = called(node) == "option"
        flags = [name for name in names if name.startswith("--")] if option else names
        if not flags:
            continue
        found.append(
            Argument(
                flag=flags[0],
                default=default,
                kind=kind or kind_of(default),
                separator=" " if option else "",
                required=literal(keyword(node, "required")) is True if option else not keyword(node, "default"),
                is_switch=literal(keyword(node, "is_flag")) is True or len(flags) > 1,
            )
        )
    return tuple(found)


def _absl(sources: Sources) -> tuple[Argument, ...]:
    found = []
    for _, node in calls(sources):
        name = called(node)
        flag, default = map(literal, node.args[:2]) if len(node.args) > 1 else (None, None)
        if name.startswith("DEFINE_") and isinstance(flag, str):
            kind = KINDS.get(name.removeprefix("DEFINE_"), "str")
            found.append(Argument(flag=f"--{flag}", default=default, kind=kind, separator="="))
    return tuple(found)


def _lightning_cli(sources: Sources) -> tuple[Argument, ...]:
    """``--model.NAME`` and ``--data.NAME`` for the parameters of the two classes, and what every LightningCLI has."""
    known = definitions(sources)
    found = [
        Argument(flag="--seed_everything", kind="int", default=True),
        Argument(flag="--trainer.default_root_dir", kind="str"),
        Argument(flag="--trainer.max_steps", kind="int", default=-1),
        Argument(flag="--ckpt_path", kind="str"),
    ]
    for _, node in calls(sources, "LightningCLI"):
        given = [*node.args[:2], keyword(node, "model_class"), keyword(node, "datamodule_class")]
        for prefix, expression in zip(("model.", "data.", "model.", "data."), given, strict=False):
            definition = known.get(dotted(expression).rpartition(".")[2])
            for part in definition.body if definition else ():
                if isinstance(part, ast.FunctionDef) and part.name == "__init__":
                    found += declared(part, known, Spelling(), prefix)
    return tuple(found)


STYLES: tuple[Style, ...] = (
    Style("nanoGPT configurator", _executes_a_configurator, _globals, "=", ()),
    Style(
        "Hydra", _uses("hydra"), compose, "=", ("--cfg", "job"), lambda text, _: from_config(text),
        config_files,
    ),
    Style("HfArgumentParser", _calls_any("HfArgumentParser", "TrlParser"), _hf),
    Style("LightningCLI", _calls_any("LightningCLI"), _lightning_cli, help_words=("fit", "--help"),
          subcommand="fit"),
    Style("tyro", _uses("tyro"), _given_to(Spelling(dashes=True, switches=True), "cli")),
    Style("typer", _uses("typer"), _typer),
    Style("click", _uses("click"), _click),
    Style("fire", _uses("fire"), _given_to(Spelling("="), "Fire"), "="),
    Style("absl flags", _uses("absl.flags"), _absl, "=", help_codes=(0, 1)),
    Style("argparse", _calls_any("add_argument", "add_arg"), _argparse),
    Style("no command line", lambda sources: True, lambda sources: (), " ", ()),
)  # fmt: skip
