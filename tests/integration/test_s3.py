# SPDX-License-Identifier: Apache-2.0
"""Avatars, recordings and videos in S3: a real server of its protocol (moto's), on this machine.

``make test-s3`` runs this in an environment of its own: moto brings more than all other tests need.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sounds import tone, write_wav
from variants import put

from lipsync_fast.avatars.cache import PackageCache
from lipsync_fast.avatars.publish import publish, unpublish
from lipsync_fast.avatars.store import AvatarStore
from lipsync_fast.batch.made import read_box
from lipsync_fast.errors import AvatarStoreError, ObjectError
from lipsync_fast.objects import Objects

pytest.importorskip("obstore", reason="the extra store is not installed")
moto = pytest.importorskip("moto.server", reason="moto is not installed: see make test-s3")
SECRET = "a-secret-that-nobody-may-see"
KEYS = {
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": SECRET,
    "AWS_REGION": "us-east-1",
}


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    logging.getLogger("werkzeug").setLevel(logging.ERROR)
    server = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


@pytest.fixture
def bucket(endpoint: str, monkeypatch: pytest.MonkeyPatch, request: Any) -> str:
    """The URL of a new bucket, and what is needed to use it."""
    for name, value in KEYS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", endpoint)
    name = f"b-{abs(hash(request.node.name)):x}"
    import urllib.request

    made = urllib.request.Request(f"{endpoint}/{name}", method="PUT")
    with urllib.request.urlopen(made):
        return f"s3://{name}"


def test_a_store_in_s3(bucket: str, tiny_avatar: Path, tmp_path: Path) -> None:
    url = f"{bucket}/deep/in it"
    first = put(tiny_avatar, tmp_path / "a.lsa", 192)
    second = put(tiny_avatar, tmp_path / "b.lsa", 208)
    publish(first, url, "anna")
    store = AvatarStore(url, PackageCache(tmp_path / "cache", 10**8))
    assert store.find("anna").read_bytes() == first.read_bytes()
    publish(second, url, "anna")
    store.refresh()
    assert store.find("anna").read_bytes() == second.read_bytes()
    unpublish("anna", url)
    assert store.refresh().avatars == {}


def test_nobody_who_publishes_is_forgotten(bucket: str, tiny_avatar: Path, tmp_path: Path) -> None:
    package = put(tiny_avatar, tmp_path / "a.lsa")
    names = [f"anna-{n}" for n in range(6)]
    threads = [threading.Thread(target=publish, args=(package, bucket, n)) for n in names]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(AvatarStore(bucket, PackageCache(tmp_path / "c", 1)).refresh().avatars) == names


def test_what_is_said_where_there_is_no_access(
    bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ObjectError, match="there is no such bucket") as error:
        Objects("s3://not-there").put("x", b"")
    assert SECRET not in str(error.value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(AvatarStoreError) as error:
        AvatarStore(bucket, PackageCache(tmp_path / "c", 1)).refresh()
    assert SECRET not in str(error.value)
    assert "somebody" not in str(error.value)


def test_a_batch_from_s3_to_s3(bucket: str, tiny_avatar: Path, tmp_path: Path) -> None:
    publish(tiny_avatar, f"{bucket}/avatars", "anna")
    objects = Objects(bucket)
    for name in "abc":
        objects.put(f"in/{name}.wav", write_wav(tmp_path / f"{name}.wav", tone(0.2)))
    lines = [{"audio": f"{bucket}/in/{name}.wav"} for name in "abc"]
    lines += [{"audio": f"{bucket}/in/none.wav"}]
    (tmp_path / "list.jsonl").write_text("".join(json.dumps(each) + "\n" for each in lines))
    (tmp_path / "tmp").mkdir()
    command = [
        sys.executable, "-m", "lipsync_fast", "batch", "list.jsonl", "--out", f"{bucket}/out/",
        "--avatars", f"{bucket}/avatars", "--avatar", "anna", "--jobs", "1", "--json",
    ]  # fmt: skip
    places = {"LIPSYNC_FAST_AVATARS_CACHE": str(tmp_path / "c"), "TMPDIR": str(tmp_path / "tmp")}

    def run() -> tuple[int, int, int]:
        done = subprocess.run(
            command,
            cwd=tmp_path,
            env=os.environ | places,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 1, done
        assert "none.wav: there is nothing" in done.stderr
        assert SECRET not in done.stderr + done.stdout
        sums = json.loads(done.stdout)
        return sums["made"], sums["kept"], sums["failed"]

    assert run() == (3, 0, 1)
    video = objects.read("out/a.mp4", 1 << 20)
    assert video is not None
    made = read_box(video[0][-4096:])
    assert made is not None
    assert made.frames == 5
    assert run() == (0, 3, 1)
    summary = objects.read("out/batch.jsonl", 1 << 20)
    assert summary is not None
    states = [json.loads(line)["state"] for line in summary[0].splitlines()]
    assert states == ["kept", "kept", "kept", "failed"]
    assert list((tmp_path / "tmp").iterdir()) == []
