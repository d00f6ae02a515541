"""A command as a trial, in this process: its states with their reasons, and that none of its processes survives."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from search_spaces.cell import ForeignCell
from search_spaces.errors import InvalidInput
from search_spaces.metrics_spec import OWN_FILES, MetricsSpec
from tests.timing import within
from tests.trainers.scripts import CELL, QUADRATIC, Reported, command, context, train
from trainers.command import output
from trainers.command.cell_folder import holds_start
from trainers.command.environment import hide_secrets
from trainers.command.process import kill_marked, marker
from trainers.command.supervisor import processes
from trainers.command.trial import CommandTrial, exit_reason, metrics_path
from trainers.metric_streams import STREAMS
from trainers.protocol import Checkpoint
from trainers.reported_run import METRICS
from trainers.rows import read


def sleepers(folder: Path) -> list[int]:
    """Returns the process ids of a cell's processes."""
    mark, found = marker(folder), []
    for pid, _ in processes():
        try:
            if mark in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0"):
                found.append(pid)
        except OSError:
            continue
    return found


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """Yields the folder of a cell, and checks that none of the cell's processes survives the test."""
    yield tmp_path / "cell"
    left = sleepers(tmp_path / "cell")
    kill_marked(marker(tmp_path / "cell"))
    assert not left, "processes of the command are still running"


def until(condition: Callable[[], object], what: str, timeout_s: float = 30.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, f"no {what} in {timeout_s} s"
        time.sleep(0.01)


def test_a_command_is_trained_and_its_rows_are_streamed(folder: Path, tmp_path: Path) -> None:
    report = Reported()
    result = train(command(tmp_path), folder, report=report)
    assert (result.state, result.steps, result.reason) == ("finished", 10, "")
    assert result.l_init == 4.0
    assert result.val_loss == pytest.approx(4.0 * 0.8**20)
    assert [step for step, _ in report.rows] == list(range(11))
    assert [(row.step, row.metrics) for row in read(folder / "metrics.jsonl")] == report.rows
    kept = output.read_output(folder)
    assert kept is not None
    assert "--lr 0.1 --seed 1 --out " in kept.splitlines()[0], "the output must begin with the command"
    assert kept.endswith("done\n")


def test_a_loss_above_the_first_is_diverged(folder: Path, tmp_path: Path) -> None:
    result = train(command(tmp_path), folder, CELL.model_copy(update={"lr": 1.5}))
    assert result.state == "diverged"
    assert "is above l_init 4.0000" in result.reason
    given = train(command(tmp_path, l_init=0.01), folder, CELL.model_copy(update={"lr": 0.01}))
    assert given.state == "diverged"
    assert "is above l_init 0.0100" in given.reason


@pytest.mark.parametrize("key", ["val", "train"])
def test_a_loss_that_is_not_finite_ends_the_command_at_once(key: str, folder: Path, tmp_path: Path) -> None:
    script = f"""
import json, sys, time
with open(sys.argv[1] + "/log.jsonl", "a") as log:
    for step in range(1000000):
        values = {{"step": step, "val": {{"loss": 3.0}}, "{key}": {{"loss": 2.0 if step < 3 else float("nan")}}}}
        print(json.dumps(values), file=log, flush=True)
        time.sleep(0.01)
"""
    metrics = {"file": "{folder}/log.jsonl", "val_loss": "val.loss", "train_loss": "train.loss"}
    began = time.monotonic()
    result = train(command(tmp_path, script, "{folder} {lr}", metrics=metrics), folder)
    assert result.state == "diverged"
    assert result.reason == f"{key}_loss is nan at step 3"
    assert (result.val_loss, result.steps) == (3.0 if key == "train" else 2.0, 3)
    assert time.monotonic() - began < within(10)


def test_a_crash_is_reported_with_the_last_lines_and_without_secrets(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_API_KEY", "s3cr3t-value")
    script = """
import os, sys
for i in range(100):
    print("line", i)
sys.exit("cannot log in with " + os.environ["WANDB_API_KEY"])
"""
    result = train(command(tmp_path, script, "{lr}"), folder)
    assert result.state == "crashed"
    first, *lines = result.reason.splitlines()
    assert first == "the command exited with 1; its last lines:"
    assert lines[-2:] == ["line 99", "cannot log in with ***"]
    assert len(lines) == output.TAIL_LINES


@pytest.mark.parametrize(
    ("script", "reason"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "the command was killed by SIGSEGV"),
        ("import os, signal; os.kill(os.getpid(), signal.SIGKILL)", "the command was killed by SIGKILL"),
        ("", "the command exited with code 0 and reported no val_loss: looked for 'val/loss' in file, but {folder}"),
        ("import time; print('begun', flush=True); time.sleep(1000)", "no output and no metric for 1 s"),
    ],
)
def test_other_crashes(script: str, reason: str, folder: Path, tmp_path: Path) -> None:
    result = train(command(tmp_path, script, "{lr}", silence_s=1), folder)
    assert result.state == "crashed"
    assert result.reason.startswith(reason.replace("{folder}", f"{folder}/log.jsonl does not exist")), result.reason


def test_a_command_that_cannot_start(folder: Path, tmp_path: Path) -> None:
    result = train(command(tmp_path, command="no-such-program {lr}"), folder)
    assert result.state == "crashed"
    assert result.reason == (
        "the command exited with 127; its last lines:\nNo such file or directory: 'no-such-program'"
    )


def test_values_are_never_interpreted_by_a_shell(folder: Path, tmp_path: Path) -> None:
    script = """
import json, sys
print(json.dumps({"val_loss": 1.0, "argv": 1}))
open(sys.argv[1] + "/argv.json", "w").write(json.dumps(sys.argv[2:]))
"""
    evil = "a b'; touch /tmp/x; $(id) {lr}"
    cell = CELL.model_copy(update={"factors": {"text": evil, "betas": (0.9, 0.95), "flag": True, "n": 3}})
    arguments = "{folder} {text} --betas={betas} {flag} 'two words' {{literal}} '{\"json\": 1}' {n} {lr}"
    metrics = {"stdout": r'"val_loss": (?P<val_loss>[\d.]+)'}
    assert train(command(tmp_path, script, arguments, metrics=metrics), folder, cell).state == "finished"
    words = json.loads((folder / "argv.json").read_text())
    assert words == [evil, "--betas=0.9,0.95", "true", "two words", "{literal}", '{"json": 1}', "3", "0.1"]


def test_the_environment_of_a_command(folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has the driver's variables, its own devices and cores, and none of the worker's process group."""
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT"):
        monkeypatch.setenv(name, "7")
    monkeypatch.setenv("MINE", "reaches it")
    script = "import os, json, sys; json.dump(dict(os.environ), open(sys.argv[1] + '/env.json', 'w'))"
    spec = command(tmp_path, script, "{folder} {lr} {workers}")
    train(spec, folder, workers=4, cores=8, device_ids=("2", "5"))
    found = json.loads((folder / "env.json").read_text())
    assert found["MINE"] == "reaches it"
    assert {"RANK", "WORLD_SIZE", "LOCAL_RANK"}.isdisjoint(found)
    assert found["CUDA_VISIBLE_DEVICES"] == "2,5"
    assert found["OMP_NUM_THREADS"] == "2"
    assert found["MASTER_ADDR"] == "127.0.0.1"
    assert int(found["MASTER_PORT"]) > 1000
    assert found["OEC_CELL"] == CELL.id
    train(command(tmp_path, script, "{folder} {lr}"), folder, workers=4, cores=8)
    assert json.loads((folder / "env.json").read_text())["OMP_NUM_THREADS"] == "8", "one process has all cores"


FOREVER = """
import json, sys, time
step = 0
while True:
    print(json.dumps({"step": step, "val_loss": 1.0}), flush=True)
    step += 1
    time.sleep(0.05)
"""
STREAM = {"stdout": r'"step": (?P<step>\d+), "val_loss": (?P<val_loss>[\d.]+)'}
STUBBORN = "import signal\nfor s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP): signal.signal(s, signal.SIG_IGN)\n"
DAEMON = """
import os, subprocess, sys, time
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        os.setsid()
        stubborn = "import time, signal; signal.signal(15, signal.SIG_IGN); time.sleep(1000)"
        os.execv(sys.executable, [sys.executable, "-S", "-c", stubborn])
    os._exit(0)
os.wait()
time.sleep(0.5)
"""


@pytest.mark.fault("a command that ignores SIGTERM")
@pytest.mark.fault("a command whose processes leave its group and session")
@pytest.mark.parametrize("script", [STUBBORN + FOREVER, DAEMON + FOREVER], ids=["stubborn", "daemon"])
def test_a_stopped_command_ends_with_everything_it_started(script: str, folder: Path, tmp_path: Path) -> None:
    report = Reported()
    spec = command(tmp_path, script, "{lr}", metrics=STREAM, grace_s=0.5)
    result = train(spec, folder, report=report, should_stop=lambda: len(report.rows) > 3)
    assert result.state == "stopped"
    assert result.steps >= 3


@pytest.mark.fault("a daemon outlives its command")
def test_processes_left_by_a_finished_command_are_ended(folder: Path, tmp_path: Path) -> None:
    spec = command(tmp_path, DAEMON + 'print(\'{"step": 1, "val_loss": 1.0}\')', "{lr}", metrics=STREAM, grace_s=0.2)
    assert train(spec, folder).state == "finished"


@pytest.mark.fault("a command that fills its output")
def test_output_is_bounded_but_all_of_its_metrics_are_read(folder: Path, tmp_path: Path) -> None:
    script = """
import sys
for step in range(40):
    sys.stdout.write("x" * 999 + "\\n" if step % 2 else "y" * 500_000)
    sys.stdout.write("\\n" + '{"step": %d, "val_loss": 1.0}' % step + "\\n")
"""
    report = Reported()
    result = train(command(tmp_path, script, "{lr}", metrics=STREAM), folder, report=report)
    assert result.state == "finished"
    assert [step for step, _ in report.rows] == list(range(40))
    sizes = [path.stat().st_size for path in folder.glob("output.log*")]
    assert len(sizes) == 2
    assert sum(sizes) <= output.MAX_BYTES
    assert (output.read_output(folder) or "").endswith('{"step": 39, "val_loss": 1.0}\n')


@pytest.mark.fault("SIGKILL of a command's supervisor")
def test_a_killed_supervisor_leaves_nothing(folder: Path, tmp_path: Path) -> None:
    report = Reported()
    spec = command(tmp_path, DAEMON + FOREVER, "{lr}", metrics=STREAM)

    def kill() -> None:
        until(lambda: report.rows, "row")
        for pid in sleepers(folder):
            if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    result = train(spec, folder, report=report)
    killer.join()
    assert result.state == "crashed"
    assert result.reason.startswith("the command was killed by SIGKILL")


def train_forever(folder: Path, code: Path) -> None:
    train(command(code, DAEMON + STUBBORN + FOREVER, "{lr}", metrics=STREAM, grace_s=0.5), folder)


@pytest.mark.fault("SIGKILL of the worker of a command")
@pytest.mark.parametrize("supervisor", ["alive", "killed", "a child of the worker"])
def test_a_killed_worker_leaves_nothing(supervisor: str, folder: Path, tmp_path: Path) -> None:
    """Its supervisor ends the command. If the supervisor is killed at the same moment, the next start of the cell
    does."""
    worker = multiprocessing.get_context("spawn").Process(target=train_forever, args=(folder, tmp_path))
    worker.start()
    until(lambda: read(folder / "metrics.jsonl"), "row", 60)
    found = sleepers(folder)
    assert len(found) >= 3, "expected supervisor, command and daemon"
    if supervisor == "killed":
        for pid in found:
            if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGSTOP)
    assert worker.pid is not None
    if supervisor == "a child of the worker":  # an exiting Ray worker kills its children, not theirs
        for pid, parent in processes():
            if parent == worker.pid:
                os.kill(pid, signal.SIGKILL)
    os.kill(worker.pid, signal.SIGKILL)
    worker.join()
    if supervisor == "killed":
        for pid in found:
            if b"supervisor.py" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGKILL)
        assert sleepers(folder), "the daemon has already ended, so the test proves nothing"
        assert train(command(tmp_path), folder).state == "finished"
    until(lambda: not sleepers(folder), "end of the processes")


def test_a_command_resumes_if_there_is_an_option_for_it(folder: Path, tmp_path: Path) -> None:
    """Rows up to the step at which it resumes are kept, and l_init is still the first loss."""
    folder.mkdir()
    (folder / "state.json").write_text("[1.5, 4]")
    rows = [{"step": step, "time": 1.0 + step, "val_loss": 4.0 - step / 10} for step in range(7)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    report = Reported()
    result = train(command(tmp_path, resume="--resume"), folder, report=report)
    assert result.state == "finished"
    assert result.l_init == 4.0
    assert [step for step, _ in report.rows] == list(range(4, 11))
    kept = read(folder / "metrics.jsonl")
    assert [row.step for row in kept] == list(range(11))
    assert [row.val_loss for row in kept[:5]] == [4.0, 3.9, 3.8, 3.7, 2.25]
    assert "--resume" in (output.read_output(folder) or "").splitlines()[0]

    again = train(command(tmp_path), folder)
    assert again.l_init == 4.0
    assert "--resume" not in (output.read_output(folder) or "").splitlines()[-2], "it must start over without --resume"
    assert [row.step for row in read(folder / "metrics.jsonl")] == list(range(11))


def test_output_without_a_step_continues_where_it_was_interrupted(folder: Path, tmp_path: Path) -> None:
    script = """
import pathlib, sys
state = pathlib.Path(sys.argv[1], "state")
losses = (2.0, 1.0) if state.exists() else (4.0, 3.0)
state.touch()
for loss in losses:
    print("loss", loss, flush=True)
sys.exit(0 if losses[0] == 2.0 else 9)
"""
    spec = command(tmp_path, script, "{folder} {lr}", metrics={"stdout": r"loss (?P<val_loss>\S+)"}, resume=[])
    assert train(spec, folder).state == "crashed"
    result = train(spec, folder)
    assert (result.state, result.l_init, result.val_loss) == ("finished", 4.0, 1.0)
    assert [(row.step, row.val_loss) for row in read(folder / "metrics.jsonl")] == [(0, 4), (1, 3), (2, 2), (3, 1)]


def test_a_command_that_resumes_by_itself_keeps_its_folder(folder: Path, tmp_path: Path) -> None:
    by_itself = QUADRATIC.replace("if options.resume", "if state.exists()")
    train(command(tmp_path, by_itself, resume=[]), folder)
    report = Reported()
    train(command(tmp_path, by_itself, resume=[]), folder, report=report)
    assert [row.step for row in read(folder / "metrics.jsonl")] == list(range(11))
    assert report.rows == [], "it must only repeat the last step, whose row is already known"


def test_metrics_alone_cannot_be_resumed_and_a_damaged_start_is_set_aside(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "log.jsonl").write_text('{"step": 3, "val": {"loss": 9.0}}\n')
    result = train(command(tmp_path, resume="--resume"), folder)
    assert (result.state, result.l_init) == ("finished", 4.0), "there was nothing to resume from"
    (folder / "state.json").write_text("[1.5, ")
    os.utime(folder / "log.jsonl", (2e9, 2e9))  # the newest file with this name
    metrics = {"file": "{folder}/**/log.jsonl", "val_loss": "val/loss"}
    trial = CommandTrial(command(tmp_path, resume="--resume", metrics=metrics))
    trial.setup(context(tmp_path))
    first, second = (trial.train(CELL, Reported(), Checkpoint(folder=folder)) for _ in range(2))
    assert first.state == "crashed"
    assert "JSONDecodeError" in first.reason
    assert (second.state, second.l_init) == ("finished", 4.0), "it did not start over"
    assert (folder / "unusable-1/state.json").read_text() == "[1.5, "
    kept = (output.read_output(folder) or "").splitlines()
    assert [("--resume" in line) for line in kept if line.startswith("$ ")] == [False, True, True, False]


@pytest.mark.parametrize(
    ("metrics", "own", "start"),
    [
        ({"tensorboard": "{folder}"}, ["a/events.out.tfevents.1", "hparams.yaml"], "last.ckpt"),
        ({"mlflow": "{folder}"}, ["0/meta.yaml", "0/r/meta.yaml", "0/r/metrics/a/b", "0/r/tags/t"], "0/r/artifacts/w"),
        ({"mlflow": "sqlite:///{folder}/mlflow.db"}, ["mlflow.db", "mlflow.db-journal"], "model.pt"),
        ({"file": "{folder}/log*.jsonl"}, ["log.jsonl", "log-2.jsonl"], "checkpoints/1"),
    ],
)
def test_a_start_is_found_next_to_the_metrics(
    metrics: dict[str, str], own: list[str], start: str, tmp_path: Path
) -> None:
    folder = tmp_path / "a [1]*"  # characters with a special meaning in globs
    spec = MetricsSpec.model_validate(metrics)
    stream = STREAMS[spec.source](spec, metrics_path(spec.path, {"folder": folder}))
    assert not [path for path in stream.own_files() if path.exists()]
    for name in (*own, "output.log", "unusable-1/model.pt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()
    found = stream.own_files()
    assert not holds_start(folder, "**/*", found)
    assert holds_start(folder, own[0], ()), "files that the study names count as a start"
    (folder / start).parent.mkdir(parents=True, exist_ok=True)
    (folder / start).touch()
    assert holds_start(folder, "**/*", found)


def test_a_kill_right_after_the_resumption_costs_no_checkpoint(folder: Path, tmp_path: Path) -> None:
    folder.mkdir()
    (folder / "state.json").write_text("[1.5, 4]")
    killed = "import os, sys, signal\nif '--resume' in sys.argv: os.kill(os.getpid(), signal.SIGKILL)\n"
    by_a_shell = "import sys\nif '--resume' in sys.argv: sys.exit(137)\n"
    for script in (killed, by_a_shell):
        trial = CommandTrial(command(tmp_path, script + QUADRATIC, resume="--resume"))
        trial.setup(context(tmp_path))
        for _ in range(3):
            assert trial.train(CELL, Reported(), Checkpoint(folder=folder)).state == "crashed"
    assert train(command(tmp_path, command="no-such-program {lr}", resume="--resume"), folder).state == "crashed"
    assert (folder / "state.json").read_text() == "[1.5, 4]"


def test_each_of_two_nodes_starts_the_command_once(folder: Path, tmp_path: Path) -> None:
    """Two threads that exchange their values act as two ranks. The failure of one is reported and ends the other."""
    script = """
import json, os, sys, time
rank, folder = int(sys.argv[1]), sys.argv[2]
json.dump([sys.argv[3:], os.environ["MASTER_PORT"]], open(f"{folder}/rank-{rank}.json", "w"))
if rank == 1:
    time.sleep(0.5)
    sys.exit("node one is broken" if sys.argv[-1] == "0.5" else 0)
print('{"step": 1, "val_loss": 1.0}', flush=True)
time.sleep(1 if sys.argv[-1] == "0.1" else 1000)
"""
    arguments = "{node_rank} {folder} {nodes} {master_addr} {master_port} {lr}"
    spec = command(tmp_path, script, arguments, metrics=STREAM, nodes=2, grace_s=0.2)
    results = on_two_nodes(spec, folder, CELL)
    assert results[0].state == "finished"
    ranks = [json.loads((folder / f"rank-{rank}.json").read_text()) for rank in (0, 1)]
    assert ranks[0] == ranks[1], "the ranks disagree on their master"
    assert ranks[0][0][:2] == ["2", "10.0.0.0"]
    assert ranks[0][0][2] == ranks[0][1]
    broken = on_two_nodes(spec, folder, CELL.model_copy(update={"lr": 0.5}))
    assert broken[0].state == "crashed"
    assert broken[0].reason == "the command exited with 1 on node 1; its last lines:\nnode one is broken"


def on_two_nodes(spec: object, folder: Path, cell: ForeignCell) -> list[object]:
    barrier, slots = threading.Barrier(2), [None, None]
    results: list[object] = [None, None]

    def run(rank: int) -> None:
        def gather(value: object) -> list[object]:
            slots[rank] = value  # type: ignore[call-overload]
            barrier.wait(30)
            values = list(slots)
            barrier.wait(30)
            return values

        results[rank] = train(spec, folder, cell, rank=rank, size=2, workers=2, address=f"10.0.0.{rank}", gather=gather)

    threads = [threading.Thread(target=run, args=[rank]) for rank in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def test_a_directory_that_a_node_lacks_is_named(tmp_path: Path) -> None:
    spec = command(tmp_path / "code").model_copy(update={"directory": "/nowhere"})
    with pytest.raises(InvalidInput, match="is not a folder on "):
        CommandTrial(spec).setup(context(tmp_path))


@pytest.mark.parametrize(
    ("code", "how"), [(3, "exited with 3"), (-9, "was killed by SIGKILL"), (-40, "was killed by Rea")]
)
def test_every_exit_code_has_a_description(code: int, how: str) -> None:
    assert how in exit_reason(code)


def test_a_command_may_not_write_any_of_our_files() -> None:
    assert set(OWN_FILES) == {METRICS, output.NAME, output.PREVIOUS}


def test_a_home_may_have_any_name(tmp_path: Path) -> None:
    """The characters of its name may have a special meaning in globs."""
    folder = tmp_path / "home [1]*?" / "cell"
    for metrics in ("{folder}/log.jsonl", "{folder}/l*.jsonl"):
        spec = command(tmp_path, metrics={"file": metrics, "val_loss": "val/loss"})
        assert train(spec, folder).state == "finished"


def test_secrets_are_found_by_name_and_in_urls() -> None:
    base = {"HF_TOKEN": "hf_abcdef", "STORE": "postgresql://me:pa55word@db/x s3://k:an0ther-one@b", "A_KEY": "short"}
    text = "hf_abcdef pa55word an0ther-one short me db"
    assert hide_secrets(text, base) == "*** *** *** short me db"
