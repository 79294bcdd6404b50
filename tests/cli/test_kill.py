"""A killed evaluation, started again, ends with the very same card."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest

LINE = (
    "evaluate --images 24 --eps 0.15 --steps 5 --attack-steps 4 --eot 3 --draws 4 "
    "--shard-size 4 --check-images 4"
)


def start(out):
    command = [sys.executable, "-m", "depure", *LINE.split(), "--out", str(out)]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)


def card(out):
    data = json.loads((out / "card.json").read_text())
    return {k: v for k, v in data.items() if k not in ("run", "command")}


@pytest.mark.slow
def test_sigkill_and_continue(tmp_path):
    assert start(tmp_path / "whole").wait(120) == 0
    killed = start(tmp_path / "run")
    shards = tmp_path / "run" / "shards"
    deadline = time.monotonic() + 120

    def inside_the_third():
        done = len(list(shards.glob("0*.safetensors"))) >= 2
        return done and any(shards.glob("*.journal"))

    while not inside_the_third():
        assert time.monotonic() < deadline
        assert killed.poll() is None, "finished before it could be killed"
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    finished = len(list(shards.glob("0*.safetensors")))
    assert 2 <= finished < 6
    assert not (tmp_path / "run" / "card.json").exists()
    assert start(tmp_path / "run").wait(120) == 0
    assert not list((tmp_path / "run").rglob("*.journal"))
    assert card(tmp_path / "run") == card(tmp_path / "whole")
