"""A home in a bucket: objects, mirrored folders, the ledger, and its single writer."""

from __future__ import annotations

import json
import os
import pickle
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import s3fs
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from search_spaces.errors import InvalidInput
from search_spaces.plan import Plan
from search_spaces.record import CellResult
from search_spaces.study import Study
from service.cluster.jobs import portable_home
from service.home import bucket_ledger, copies, writer
from service.home.bucket_ledger import BucketLedger
from service.home.layout import Home
from service.home.ledger import Ledger
from service.home.location import open_home, scratch
from service.home.signals import BucketSignals
from service.home.studies import is_running, register_study, with_ledger, write_ledger
from service.home.writer import LedgerLocked, Writer
from service.sweep import run
from service.sweep.stop import stop_requests
from tests.stores import Store, store
from trainers import checkpoint, weights
from trainers.data import Shards, TokenFiles, Tokens, write_shard
from trainers.storage import bucket as buckets
from trainers.storage.bucket import Bucket, Mirror

ALONE: dict[str, Any] = {"address": None, "retry_crashed": False, "console": Console()}
CELLS = Plan(Study.load("short"), "data").cells


@pytest.fixture(scope="module", params=["s3", "gs"])
def each(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store(request.param, tmp_path_factory.mktemp("store")) as made:
        yield made


@pytest.fixture(scope="module")
def s3(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Store]:
    with store("s3", tmp_path_factory.mktemp("store")) as made:
        yield made


@pytest.fixture
def bucket(each: Store) -> Bucket:
    return Bucket.open(each.home())


def test_objects(bucket: Bucket, tmp_path: Path) -> None:
    assert bucket.names() == {}
    assert bucket.read("a/one") is None
    assert bucket.stamp("a/one") is None
    bucket.write("a/one", b"1")
    bucket.write("a/one", b"22")
    (tmp_path / "large").write_bytes(large := os.urandom(9 << 20))  # uploaded in several requests
    bucket.upload("a/b/large", tmp_path / "large")
    assert {name: stamp.bytes for name, stamp in bucket.names().items()} == {"a/b/large": len(large), "a/one": 2}
    assert list((bucket / "a").names()) == ["b/large", "one"]
    assert bucket.folders() == ["a"]
    assert (bucket / "a").folders() == ["b"]
    assert (bucket / "none").folders() == []
    bucket.download("a/b/large", tmp_path / "deep" / "copy")
    assert (tmp_path / "deep" / "copy").read_bytes() == large
    with pytest.raises(FileNotFoundError):
        bucket.download("none", tmp_path / "none")
    assert list(tmp_path.glob("**/.*")) == []
    bucket.remove(["a/one", "none"])
    assert bucket.read_all(["a/one", "a/b/large"]) == [None, large]
    assert pickle.loads(pickle.dumps(bucket)).read("a/b/large") == large


def test_only_one_writer_creates_an_object(bucket: Bucket) -> None:
    assert bucket.create("one", b"mine")
    assert not bucket.create("one", b"yours")
    assert bucket.create("one", b"mine"), "creating it again after a lost response must succeed"
    assert bucket.read("one") == b"mine"


@pytest.mark.parametrize(
    ("url", "problem"),
    [
        ("s3://", "must consist of a bucket"),
        ("s3://key:secret@bucket/home", "must consist of a bucket"),
        ("s3://bucket/a/../../b", "must consist of a bucket"),
        ("s3://bucket/a?versionId=1", "must consist of a bucket"),
        ("s3://another/home", "does not exist"),
    ],
)
def test_invalid_urls_of_a_home(s3: Store, url: str, problem: str) -> None:
    with pytest.raises(InvalidInput, match=problem) as refused:
        open_home(url)
    assert refused.value.field == "--home"
    assert "secret" not in str(refused.value)


def test_a_home_may_be_in_a_bucket_and_data_may_not() -> None:
    study = Study.load("short")
    assert portable_home(study, "s3://bucket/home/") == "s3://bucket/home"
    data = study.data.model_copy(update={"path": "s3://bucket/*.bin"})
    with pytest.raises(InvalidInput) as refused:
        portable_home(study.model_copy(update={"data": data}), "s3://bucket/home")
    assert refused.value.field == "data.path"


def test_tokens_are_reopened_unchanged(tmp_path: Path) -> None:
    for name in ("train", "validation"):
        write_shard(tmp_path / f"{name}.bin", np.arange(9, dtype=np.uint16))
    train = Shards((tmp_path / "train.bin",))
    validation = Shards((tmp_path / "validation.bin",), "data.validation")
    tokens = Tokens(train, validation, 9, 16, "digest", tmp_path)
    opened = pickle.loads(pickle.dumps(TokenFiles.of(tokens))).open()
    assert opened == tokens
    assert opened.validation.origin == "data.validation"


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "find_spec", lambda name: None)
    with pytest.raises(InvalidInput, match=r"s3fs.*pip install"):
        open_home("s3://bucket/home")


def test_a_store_that_does_not_answer_is_refused_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(buckets, "OPEN_TIMEOUT_S", 1.0)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "us")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "ours")
    buckets._filesystem.cache_clear()
    began = time.monotonic()
    with pytest.raises(InvalidInput, match="does not respond within 1 s"):
        open_home("s3://bucket/home")
    buckets._filesystem.cache_clear()
    assert time.monotonic() - began < 20


def test_losing_access_to_a_bucket_is_bad_input(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error is reported wherever it occurs in a run, and the same command resumes once access is restored."""

    def refused(*_: object, **__: object) -> int:
        raise PermissionError("Access Denied")

    home = Home(tmp_path, Bucket("s3://bucket/home"))
    monkeypatch.setattr(buckets, "_filesystem", lambda scheme: SimpleNamespace(pipe_file=refused))
    monkeypatch.setattr(
        run, "prepare_source", lambda study, home, report: stop_requests(home, "smoke").write("study", "oec stop")
    )
    with pytest.raises(InvalidInput, match=r"Access Denied.*run the same command to resume"):
        run.run_study(Study.load("short"), home, **ALONE)
    monkeypatch.setattr(run, "prepare_source", refused)
    with pytest.raises(PermissionError):
        run.run_study(Study.load("short"), Home(tmp_path), **ALONE)


def test_a_store_works_again_after_an_outage(s3: Store) -> None:
    bucket = Bucket.open(s3.home())
    bucket.write("before", b"1")
    s3.freeze()
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(buckets.OPTIONS, "s3", {"config_kwargs": {"read_timeout": 1, "retries": {"max_attempts": 1}}})
            patch.setattr(buckets, "BACKOFF_S", ())
            patch.setattr(s3fs.S3FileSystem, "retries", 1)
            buckets._filesystem.cache_clear()
            with pytest.raises(OSError, match="Timeout"):
                bucket.read("before")
    finally:
        s3.resume()
        buckets._filesystem.cache_clear()
    assert bucket.read("before") == b"1"


def test_a_mirror_copies_a_folder_to_another_machine(bucket: Bucket, tmp_path: Path) -> None:
    here, there = Mirror(tmp_path / "here", bucket / "cell"), Mirror(tmp_path / "there", bucket / "cell")
    checkpoints = here.folder / "checkpoints"
    here.pull()
    for step in (1, 2, 3):
        checkpoint.save(checkpoints, "cell", step, {}, {"step": step})
        (here.folder / "metrics.jsonl").write_text("{}\n" * step)
        here.push()
    (there.folder / "checkpoints").mkdir(parents=True)
    (there.folder / "checkpoints" / "step-00000009.safetensors").write_bytes(b"of a killed worker")
    there.pull()
    found = checkpoint.load_latest(there.folder / "checkpoints", "cell")
    assert found is not None
    assert found.progress == {"step": 3}
    assert (there.folder / "metrics.jsonl").read_text() == "{}\n" * 3
    assert sum(name.endswith(".json") for name in bucket.names()) == checkpoint.MAX_CHECKPOINTS
    checkpoint.remove(there.folder / "checkpoints")
    there.push()
    assert list((bucket / "cell").names()) == ["metrics.jsonl"]


def test_a_mirror_of_a_folder_that_a_command_is_changing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command rotates its checkpoints during the upload, and has links to files elsewhere."""
    mirror = Mirror(tmp_path / "here", bucket / "cell")
    for step in (1, 2):
        (mirror.folder / f"step-{step}").mkdir(parents=True)
        (mirror.folder / f"step-{step}" / "weights.pt").write_text(f"{step}")
    (mirror.folder / "unusable-1").mkdir()
    (mirror.folder / "unusable-1" / "weights.pt").write_text("0")
    (tmp_path / "data").write_text("large")
    (mirror.folder / "data").symlink_to(tmp_path / "data")
    upload = Bucket.upload

    def rotate(self: Bucket, name: str, path: Path) -> None:
        shutil.rmtree(mirror.folder / "step-1", ignore_errors=True)
        upload(self, name, path)

    monkeypatch.setattr(Bucket, "upload", rotate)
    mirror.push()
    assert list((bucket / "cell").names()) == ["step-2/weights.pt"]
    shutil.rmtree(mirror.folder / "step-2")
    mirror.push()
    assert list((bucket / "cell").names()) == []


def test_weights_are_moved_to_the_bucket_and_do_not_come_back(bucket: Bucket, tmp_path: Path) -> None:
    """Neither the machine that trains a cell nor one that resumes it keeps all of the cell's weights."""
    here = Mirror(tmp_path / "here", bucket / "cell", archive="weights")
    here.pull()
    this = CELLS[0]
    for step in (1, 2, 3):
        weights.save(here.folder / "weights", this, step, {})
        checkpoint.save(here.folder / "checkpoints", this.id, step, {}, {"step": step})
        here.push()
        assert not list((here.folder / "weights").iterdir())
    there = Mirror(tmp_path / "there", bucket / "cell", archive="weights")
    there.pull()
    assert not (there.folder / "weights").exists()
    assert checkpoint.load_latest(there.folder / "checkpoints", this.id) is not None
    there.remove_archived(lambda name: weights.is_after(name, 2))
    weights.save(there.folder / "weights", this, 4, {})
    there.push()
    kept = [name for name in (bucket / "cell").names() if name.startswith("weights/")]
    assert kept == [f"weights/step-{step:08d}.{form}" for step in (1, 2, 4) for form in ("json", "safetensors")]


def test_a_kill_during_a_push_leaves_the_previous_checkpoint(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mirror = Mirror(tmp_path / "here", bucket)
    checkpoint.save(mirror.folder, "cell", 1, {}, {"step": 1})
    mirror.push()
    checkpoint.save(mirror.folder, "cell", 2, {}, {"step": 2})
    upload = Bucket.upload

    def killed(self: Bucket, name: str, path: Path) -> None:
        if name.endswith(".json"):
            raise KeyboardInterrupt
        upload(self, name, path)

    monkeypatch.setattr(Bucket, "upload", killed)
    with pytest.raises(KeyboardInterrupt):
        mirror.push()
    there = Mirror(tmp_path / "there", bucket)
    there.pull()
    with pytest.warns(UserWarning, match="never completed"):
        found = checkpoint.load_latest(there.folder, "cell")
    assert found is not None
    assert found.progress == {"step": 1}


def test_a_folder_is_fetched_completely_or_not_at_all(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here" / "tokens", bucket / "tokens")
    assert not mirror.fetch("manifest.json")
    (bucket / "tokens").write("train-00000.bin", b"1234")
    assert not mirror.fetch("manifest.json")
    assert not mirror.folder.exists()
    (bucket / "tokens").write("manifest.json", b"{}")
    assert mirror.fetch("manifest.json")
    assert (mirror.folder / "train-00000.bin").read_bytes() == b"1234"


def test_objects_that_lead_out_of_the_folder_are_refused(bucket: Bucket, tmp_path: Path) -> None:
    mirror = Mirror(tmp_path / "here" / "cell", bucket / "cell")
    (tmp_path / "here" / "cell").mkdir(parents=True)
    (tmp_path / "here" / "cell" / "out").symlink_to(tmp_path)
    (bucket / "cell").write("out/file", b"")
    with pytest.raises(InvalidInput, match="outside of its folder"):
        mirror.pull()
    assert not (tmp_path / "file").exists()


def test_signals_reach_every_machine(bucket: Bucket) -> None:
    here = BucketSignals(bucket / "stop", max_age_s=0)
    there = pickle.loads(pickle.dumps(here))
    assert there.read("study") is None
    here.write("study", "oec stop")
    assert there.read("study") == "oec stop"
    there.clear()
    assert here.read("study") is None


def test_signals_are_not_read_from_the_bucket_every_time(s3: Store) -> None:
    texts = BucketSignals(Bucket(s3.home()))
    assert texts.read("study") is None
    texts.write("study", "oec stop")
    assert texts.read("study") is None
    assert texts.read("another") is None
    assert texts.read("study") == "oec stop", "only the last name is cached"


@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    appended=st.lists(
        st.tuples(st.lists(st.text("abc", max_size=3), min_size=1, max_size=4), st.booleans()), max_size=12
    ),
    block=st.integers(1, 4),
)
def test_a_bucket_ledger_holds_every_line_once(
    appended: list[tuple[list[str], bool]], block: int, s3: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lines come from several writers, one after the other, and are merged in blocks of any size."""
    monkeypatch.setattr(bucket_ledger, "MERGE_OBJECTS", block)
    home, written, first = Bucket(s3.home()), b"", 1
    ledger = BucketLedger(home, "short")
    ledger.take()
    seen = b""
    for lines, another in appended:
        if another:
            ledger.close()
            ledger = BucketLedger(home, "short")
            ledger.take()
        content = "".join(f"{line}\n" for line in lines).encode()
        ledger.append(first, content)
        first, written = first + len(lines), written + content
        assert BucketLedger(home, "short").content() == written
        if len(lines) % 2:  # like a reader that checks only now and then
            seen = BucketLedger(home, "short").content(seen)
            assert seen == written
    ledger.close()
    assert BucketLedger(home, "short").content(seen) == written
    assert BucketLedger(home, "short").content(b"of another study\n" + written) == written
    assert BucketLedger(home, "short").content() == written


def test_merged_lines_are_read_once(s3: Store) -> None:
    """A reader may see the moment at which the block's first object already holds all lines and the other objects still
    exist."""
    lines = Bucket(s3.home()) / "ledgers/short/lines"
    lines.write("0000000001", b"1\n2\n3\n4\n")
    lines.write("0000000002", b"2\n3\n")
    lines.write("0000000004", b"4\n")
    lines.write("0000000005", b"5\n")
    home = Bucket(lines.url.removesuffix("/ledgers/short/lines"))
    assert BucketLedger(home, "short").content() == b"1\n2\n3\n4\n5\n"


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bucket_ledger, "BEAT_S", 0.3)
    monkeypatch.setattr(bucket_ledger, "LOST_S", 2.0)
    monkeypatch.setattr(bucket_ledger, "POLL_S", 0.1)
    monkeypatch.setattr(writer, "LOST_S", 2.0)


def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """Makes this process believe that it runs on another machine."""
    monkeypatch.setattr(writer, "this_machine", lambda: "another")


@pytest.mark.usefixtures("quick")
def test_a_second_writer_is_refused_with_the_identity_of_the_first(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Ledger(tmp_path / "one", "short", write=True, bucket_ledger=BucketLedger(bucket, "short")) as ledger:
        ledger.plan(CELLS[:2])
        elsewhere(monkeypatch)
        with pytest.raises(LedgerLocked, match=f"pid {os.getpid()} on "):
            Ledger(tmp_path / "two", "short", write=True, bucket_ledger=BucketLedger(bucket, "short"))
        ledger.plan(CELLS[2:3])
    with Ledger(tmp_path / "two", "short", write=True, bucket_ledger=BucketLedger(bucket, "short")) as ledger:
        assert len(ledger.entries) == 3
        assert (tmp_path / "two").read_bytes() == (tmp_path / "one").read_bytes()


@pytest.mark.usefixtures("quick")
def test_a_lost_writer_that_returns_writes_nothing(
    bucket: Bucket, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    lost = Ledger(tmp_path / "one", "short", write=True, bucket_ledger=(silent := BucketLedger(bucket, "short")))
    lost.plan(CELLS[:1])
    silent._closing.set()  # its machine is frozen
    elsewhere(monkeypatch)
    with Ledger(tmp_path / "two", "short", write=True, bucket_ledger=BucketLedger(bucket, "short")) as ledger:
        ledger.plan(CELLS[1:2])
        with pytest.raises(LedgerLocked, match="being run by another process"):
            lost.plan(CELLS[2:3])
        assert list(lost.entries) == [CELLS[0].id]
        ledger.plan(CELLS[3:4])
    assert [line["cell"] for line in map(json.loads, BucketLedger(bucket, "short").content().splitlines()[1:])] == [
        CELLS[0].id,
        CELLS[1].id,
        CELLS[3].id,
    ]


def test_a_killed_writer_of_this_machine_is_replaced_at_once(s3: Store, tmp_path: Path) -> None:
    url = s3.home()
    program = (
        "import os, signal; from service.home.bucket_ledger import BucketLedger;"
        "from trainers.storage.bucket import Bucket;"
        f"ledger = BucketLedger(Bucket({url!r}), 'short'); ledger.take(); ledger.append(1, b'1\\n');"
        "os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert killed.returncode == -9, killed.stderr
    ledger = BucketLedger(Bucket(url), "short")
    left = ledger.writer()
    assert left is not None
    assert not left.seems_alive
    began = time.monotonic()
    ledger.take()
    assert time.monotonic() - began < writer.LOST_S / 2
    assert ledger.content() == b"1\n"
    ledger.close()


def test_a_store_without_conditional_writes_is_refused(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def overwrites(self: Bucket, name: str, content: bytes) -> bool:
        self.write(name, content)
        return True

    monkeypatch.setattr(Bucket, "create", overwrites)
    with pytest.raises(InvalidInput, match="without conditional writes"):
        BucketLedger(Bucket(s3.home()), "short").take()


def test_a_damaged_writer_is_named(s3: Store) -> None:
    home = Bucket(s3.home())
    (home / "ledgers/short/writers").write("000001", b'{"pid": "rm -rf"}')
    with pytest.raises(InvalidInput, match="000001"):
        BucketLedger(home, "short").take()


def test_a_writer_is_visible_from_another_machine(s3: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    home = Home(Path("/nowhere"), Bucket(s3.home()))
    assert not is_running(home, "short")
    ledger = BucketLedger(home.bucket, "short")  # type: ignore[arg-type]
    ledger.take()
    assert is_running(home, "short")
    elsewhere(monkeypatch)
    assert is_running(home, "short")
    old = Writer.this().model_copy(update={"machine": "a third", "at": time.time() - 2 * writer.LOST_S})
    assert not old.seems_alive
    ledger.close()
    assert not is_running(home, "short")


def test_a_home_is_up_to_date_on_every_machine(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    study, url = Study.load("short"), s3.home()
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path / "one"))
    one = open_home(url)
    assert str(one) == url
    register_study(one, study)
    ledger = write_ledger(one, "short")
    ledger.plan(CELLS[:2])
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path / "two"))
    two = open_home(url)
    assert two.path != one.path
    assert with_ledger(two) == ["short"]
    assert Study.load(str(two.study("short") / "study.yaml")).hash == study.hash
    assert two.ledger("short").read_bytes() == one.ledger("short").read_bytes()
    ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
    copies.pull(two, "short")
    copies.pull(one, "short")  # this machine is writing it, so it is left alone
    assert two.ledger("short").read_bytes() == one.ledger("short").read_bytes()
    key = f"studies/short/cells/{CELLS[0].id}/metrics.jsonl"
    for content in (b'{"step": 0}\n', b'{"step": 0}\n{"step": 1}\n'):
        one.bucket.write(key, content)  # type: ignore[union-attr]
        copies.download_metrics(two, [(CELLS[0].id, "short"), (CELLS[1].id, "short")])
        assert two.metrics(CELLS[0].id, "short").read_bytes() == content
    assert not two.metrics(CELLS[1].id, "short").exists()
    ledger.close()


def test_a_study_that_was_only_planned_may_change(s3: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path))
    home = open_home(s3.home())
    study = Study.load("short")
    register_study(home, study)
    with write_ledger(home, "short") as ledger:
        ledger.plan(CELLS)
    changed = study.model_copy(update={"lrs": study.lrs[:2]})
    register_study(home, changed)
    with write_ledger(home, "short") as ledger:
        assert not ledger.entries
        ledger.plan(CELLS[:1])
        ledger.end(CELLS[0].id, CellResult(state="finished", val_loss=1.0))
    with pytest.raises(InvalidInput, match="is taken"):
        register_study(home, study)


def test_scratch_of_another_user_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OEC_SCRATCH", str(tmp_path))
    monkeypatch.setattr(os, "getuid", lambda: 12345)
    with pytest.raises(InvalidInput, match="belongs to another user"):
        scratch()
