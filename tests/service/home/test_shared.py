"""Where a home can be."""

from __future__ import annotations

from pathlib import Path

import pytest

from search_spaces.errors import InvalidInput
from service.home.location import IN_A_JOB, local_folder


@pytest.mark.parametrize(
    ("given", "path"),
    [
        ("oec-home", "oec-home"),
        ("/mnt/home", "/mnt/home"),
        ("file:///mnt/home", "/mnt/home"),
        ("file:/mnt/home", "/mnt/home"),
        ("file://localhost/mnt/a%20home", "/mnt/a home"),
    ],
)
def test_paths_and_file_urls(given: str, path: str) -> None:
    assert local_folder(given) == Path(path)


@pytest.mark.parametrize(
    ("given", "remedy"),
    [
        ("s3://bucket/home", "give a folder"),
        ("gs://bucket/home", "give a folder"),
        ("memory://home", "s3://BUCKET/PREFIX"),
        ("hdfs://host/home", "s3://BUCKET/PREFIX"),
    ],
)
def test_an_address_that_is_not_a_folder_is_refused_with_a_remedy(given: str, remedy: str) -> None:
    with pytest.raises(InvalidInput) as refused:
        local_folder(given)
    assert (refused.value.field, refused.value.value) == ("--home", given)
    assert remedy in refused.value.remedy


@pytest.mark.parametrize("given", ["file://host/home", "file://"])
def test_file_urls_that_are_not_local_folders(given: str) -> None:
    with pytest.raises(InvalidInput, match="file:///absolute/path"):
        local_folder(given)


def test_a_relative_home_in_a_job_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(IN_A_JOB, "{}")
    assert local_folder("/mnt/home") == Path("/mnt/home")
    with pytest.raises(InvalidInput, match="OEC_HOME"):
        local_folder("oec-home")
