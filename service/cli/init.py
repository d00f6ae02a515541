"""``oec init``: a study for a training script. The handler parses and calls; ``search_spaces.script`` finds out."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.script.argument import Argument, merge
from search_spaces.script.command import draft_command
from search_spaces.script.draft import Draft, Missing
from search_spaces.script.source import Source, read_script, start_directory
from search_spaces.script.study_text import default_name, study_text
from search_spaces.script.styles import Style, style_of
from search_spaces.script.trial_class import draft_trial
from search_spaces.study import is_name

HELP_SECONDS = 90
"""Time for ``--help``: a script that imports transformers takes 20 s to print it on a slow machine."""
MAX_HELP_BYTES = 2_000_000
ALONE = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
"""Variables of a distributed run, which ``--help`` must not wait for."""
QUIET = {
    "COLUMNS": "200",
    "NO_COLOR": "1",
    "CUDA_VISIBLE_DEVICES": "",
    "HF_HUB_OFFLINE": "1",
    "WANDB_MODE": "disabled",
    "TOKENIZERS_PARALLELISM": "false",
    "PYTHONDONTWRITEBYTECODE": "1",
}


def init_study(script: Path, name: str | None, out: Path, force: bool, console: Console) -> None:
    """Write a study for a training script into ``out``, and print what was found.

    Raises:
        InvalidInput: the script cannot be read or has no arguments, or a name or file is not usable.
    """
    name = name or default_name(script)
    if not is_name(name):
        remedy = "use at most 63 lowercase letters, digits, '.', '_' and '-', starting with a letter or digit"
        raise InvalidInput("--name", name, "is not a valid name", remedy)
    if out.exists() and not force:
        raise InvalidInput("--out", str(out), "exists", "add --force to overwrite it, or give another file with --out")
    sources = read_script(script, Path.cwd())
    directory = start_directory(sources, Path.cwd())
    draft = draft_trial(sources, directory) or _draft_from_help(script, sources, directory, console)
    try:
        with out.open("w" if force else "x", encoding="utf-8") as file:
            file.write(study_text(draft, name, out.resolve().parent))
    except OSError as error:
        raise InvalidInput("--out", str(out), f"cannot be written ({error.strerror})", "give another file") from error
    print_draft(draft, out, console)


def _draft_from_help(script: Path, sources: tuple[Source, ...], directory: Path, console: Console) -> Draft:
    style = style_of(sources)
    shown, problem = help_arguments(script, style, directory)
    arguments = merge(style.read(sources), shown)
    if problem and not arguments:
        remedy = "make it print its arguments, or write the study by hand (docs/your-training.md)"
        raise InvalidInput("script", str(script), f"{problem}, and its text declares no arguments", remedy)
    if problem:
        console.print(f"{problem}\nThe arguments are those that the text declares.\n", soft_wrap=True)
    draft = draft_command(sources, style, arguments, directory)
    program = draft.trainer["command"].split()[0]
    if shutil.which(program):
        return draft
    how = f"{program} is not on PATH: activate the script's environment, or write its path in the command"
    return replace(draft, missing=(*draft.missing, Missing("launcher", how)))


def help_arguments(script: Path, style: Style, directory: Path) -> tuple[tuple[Argument, ...], str | None]:
    """What the script prints about its arguments, and what went wrong, if anything did.

    It runs in a process group of its own, without accelerators and without the Hub, which is killed when it takes
    longer than ``HELP_SECONDS``. A script that would train instead is not started.
    """
    if not style.help_words:
        return (), None
    words = " ".join(style.help_words)
    environment = {key: value for key, value in os.environ.items() if key not in ALONE} | QUIET
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            [shutil.which("python") or sys.executable, str(script.resolve()), *style.help_words],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=directory,
            env=environment,
            start_new_session=True,
        )
        try:
            code: int | None = process.wait(HELP_SECONDS)
        except subprocess.TimeoutExpired:
            code = None
        finally:
            end_group(process)
        output.seek(0)
        text = output.read(MAX_HELP_BYTES).decode(errors="replace")
    if code is None:
        return (), f"{words} did not end within {HELP_SECONDS} s"
    if code not in style.help_codes:
        last = next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "no output")
        hint = "; is the script's environment active?" if "ModuleNotFoundError" in last else ""
        return (), f"{words} ended with exit code {code} ({last[:200]}){hint}"
    return style.parse_help(text, style.separator), None


def end_group(process: subprocess.Popen[bytes]) -> None:
    """Kill whatever is left of a process group whose leader is ``process``."""
    try:
        os.killpg(process.pid, signal.SIGKILL)
    except ProcessLookupError:
        return  # the normal case: all of it has ended
    process.wait()


def print_draft(draft: Draft, out: Path, console: Console) -> None:
    """What was found, what was not and what to do about it, and the next commands."""
    for what, value, remark in draft.found:
        console.print(f"{what:<16}{value}" + (f"  ({remark})" if remark else ""), soft_wrap=True)
    if draft.missing:
        console.print("\nleft to you:")
    for what, how, _ in sorted(draft.missing, key=lambda missing: not missing.blocks):
        console.print(f"  {what}: {how}", soft_wrap=True)
    todo = "" if draft.is_complete else ": complete it where it says TODO"
    console.print(f"\n{out} is written{todo}. Next:\n  oec plan {out}\n  oec run {out}", soft_wrap=True)
