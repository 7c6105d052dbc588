"""Runs on several processes, killed and not, against one process that was never stopped."""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tiny_model import MODEL
from vstar_data import write_vstar

from llava_s2 import cli
from llava_s2.eval.processes import Processes

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Forty questions, eight copies of each of the five."""
    folder = write_vstar(tmp_path_factory.mktemp("data") / "vstar")
    for path in [*folder.glob("*/*.jpg"), *folder.glob("*/*.json")]:
        for copy in range(7):
            shutil.copy(path, path.with_stem(f"{path.stem}_{copy}"))
    return folder


def start(data, output, processes, restarts=0):
    """``torchrun … -m llava_s2.eval vstar``, in a session of its own."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    launcher = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", processes, "--master_port", port]
    launcher += ["--max_restarts", restarts]
    command = [*launcher, "-m", "llava_s2.eval", "vstar", *MODEL, "--data", data, "--output", output]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        list(map(str, command)),
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


def finish(process):
    try:
        output, _ = process.communicate(timeout=240)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise AssertionError(f"hung: {process.communicate()[0][-3000:]}") from None
    return process.returncode, output


def workers(process):
    """The evaluating processes under a launcher."""
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    return [pid for pid in map(int, children) if b"llava_s2.eval" in Path(f"/proc/{pid}/cmdline").read_bytes()]


def lines(output):
    return [line for file in output.glob("predictions*.jsonl") for line in file.read_bytes().splitlines()]


def predictions(output):
    """What a run answered, in the file's order; losses apart, whose last bits depend on the number of threads."""
    found = [json.loads(line) for line in (output / "predictions.jsonl").read_text().splitlines()]
    return [{**r, "seconds": 0, "losses": 0} for r in found], [loss for r in found for loss in r["losses"]]


@pytest.fixture(autouse=True)
def short_answers():
    """No other bound than the task's own, which torchrun's processes have; likelihood writes no answers."""


@pytest.fixture(scope="module")
def one_process(data, tmp_path_factory, loaded):
    output = tmp_path_factory.mktemp("one") / "run"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("llava_s2.formats.model_source.ModelSource.load", lambda self: loaded)
        assert cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(output)]) == 0
    return output


def assert_same(output, one_process):
    (records, losses), (expected, expected_losses) = predictions(output), predictions(one_process)
    assert records == expected and len(records) == 40
    assert losses == pytest.approx(expected_losses, abs=1e-5)
    reports = [json.loads((run / "report.json").read_text()) for run in (output, one_process)]
    assert reports[0]["results"] == reports[1]["results"]
    assert not list(output.glob("predictions.process-*"))


def test_two_processes_answer_as_one(data, tmp_path, one_process):
    status, printed = finish(start(data, tmp_path / "run", 2))
    assert status == 0, printed[-3000:]
    assert_same(tmp_path / "run", one_process)
    assert printed.count("95 % interval") == 1  # one report, not one a process
    assert json.loads((tmp_path / "run/report.json").read_text())["processes"] == 2


def kill_one(process, victim, output):
    """Kills one of the processes when a few questions are answered; returns the launcher's status and what it says."""
    deadline = time.monotonic() + 200
    while len(lines(output)) < 2 and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.kill(workers(process)[victim], signal.SIGKILL)
    return finish(process)


def test_a_process_that_torchrun_starts_again_goes_on(data, tmp_path, one_process):
    """The launcher's store still holds what the killed processes counted."""
    output = tmp_path / "run"
    status, printed = kill_one(start(data, output, 2, restarts=2), 1, output)
    assert status == 0, printed[-3000:]
    assert_same(output, one_process)


def test_a_killed_process_loses_nothing(data, tmp_path, one_process, loads):
    output = tmp_path / "run"
    status, printed = kill_one(start(data, output, 2), 0, output)
    assert status != 0, printed[-3000:]
    answered = {json.loads(line)["question_id"] for line in lines(output) if line.endswith(b"}")}
    assert 0 < len(answered) < 40
    assert cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(output)]) == 0
    assert_same(output, one_process)
    assert len(loads) == 1


def test_predictions_that_stand_in_two_files_count_once(data, tmp_path, one_process, loads):
    """As after a kill between the merged file's move to its place and the removal of what was merged."""
    output = tmp_path / "run"
    shutil.copytree(one_process, output)
    whole = (output / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (output / "predictions.jsonl").write_bytes(b"".join(whole[:20]))
    (output / "predictions.process-1.jsonl").write_bytes(b"".join(whole[15:30]) + whole[30][:50])
    assert cli.main(["eval", "vstar", *MODEL, "--data", str(data), "--output", str(output)]) == 0
    assert_same(output, one_process)


def test_every_number_is_claimed_once():
    from torch.distributed import HashStore

    store = HashStore()
    claims = [Processes(rank, 3, store).claim(10) for rank in range(3)]
    taken = [next(claims[number % 3]) for number in range(10)]
    assert taken == list(range(10)) and [next(claim, None) for claim in claims] == [None] * 3
