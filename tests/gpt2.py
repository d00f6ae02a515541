"""Gets GPT-2's real vocabulary from the npm package ``js-tiktoken``, without the vendor's server."""

from __future__ import annotations

import hashlib
import json
import subprocess
import tarfile
import tempfile
from pathlib import Path

import pytest

from trainers.storage.files import write_atomically

PACKAGE = "js-tiktoken@1.0.21"
URL = "https://openaipublic.blob.core.windows.net/encodings/r50k_base.tiktoken"
CACHED = hashlib.sha1(URL.encode()).hexdigest()
UNREACHABLE = ("ENOTFOUND", "EAI_AGAIN", "ECONNREFUSED", "ECONNRESET", "ETIMEDOUT", "ENETUNREACH", "EHOSTUNREACH")


def fill(folder: Path) -> Path:
    """Makes ``folder`` a TIKTOKEN_CACHE_DIR. Skips the test only if npm cannot be reached or is not installed.

    tiktoken checks the SHA-256 of the file, so the test fails unless the bytes are the original ones.
    """
    if (folder / CACHED).exists():
        return folder
    with tempfile.TemporaryDirectory() as scratch, tarfile.open(_packed(Path(scratch))) as archive:
        member = archive.extractfile("package/dist/ranks/r50k_base.js")
        assert member is not None
        script = member.read().decode()
    _, first, *tokens = json.loads(script.removeprefix("export default ").rstrip().rstrip(";"))["bpe_ranks"].split()
    lines = (f"{token} {rank}\n" for rank, token in enumerate(tokens, int(first)))
    write_atomically(folder / CACHED, "".join(lines))  # other test processes may write it at the same time
    return folder


def _packed(folder: Path) -> Path:
    command = ["npm", "pack", PACKAGE, "--silent", "--pack-destination", str(folder)]
    try:
        result = subprocess.run(command, capture_output=True, text=True, timeout=300, check=False)
    except FileNotFoundError:
        pytest.skip("npm is not installed: GPT-2's ranks come from its package js-tiktoken")
    except subprocess.TimeoutExpired:
        pytest.skip("npm did not answer: GPT-2's ranks come from its package js-tiktoken")
    if result.returncode and any(code in result.stderr + result.stdout for code in UNREACHABLE):
        pytest.skip(f"npm cannot be reached: {result.stderr.strip()[:200]}")
    assert result.returncode == 0, f"npm pack {PACKAGE} failed: {result.stdout}{result.stderr}"
    return folder / result.stdout.split()[-1]
