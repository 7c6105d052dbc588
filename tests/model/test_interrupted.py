"""A conversion that is cut off leaves its destination absent or whole."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import time
from collections import namedtuple

import pytest
import torch
from llava_reference import FULL, TOWER, copy_checkpoint
from safetensors.torch import load_file

from llava_s2.cli import main
from llava_s2.errors import InputError
from llava_s2.files import new_folder
from llava_s2.formats import lazy_tensors as folder_module
from llava_s2.formats.convert import convert
from llava_s2.formats.lazy_tensors import LazyTensor, write_weights


def contents(folder):
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def in_child(work):
    """Forks; the child runs ``work`` and ends without pytest's clean-up. Returns its process id."""
    child = os.fork()
    if child == 0:
        status = 1
        try:
            work()
            status = 0
        finally:
            os._exit(status)
    return child


def test_killed_at_random_moments(tmp_path):
    torch.set_num_threads(1)  # the forked processes have no other threads
    folder = copy_checkpoint(FULL, tmp_path / "x", mm_vision_tower=str(TOWER))
    convert(folder, tmp_path / "wanted")
    started = time.monotonic()
    _, status = os.waitpid(in_child(lambda: convert(folder, tmp_path / "timed")), 0)
    takes = time.monotonic() - started
    assert status == 0
    wanted = contents(tmp_path / "wanted")
    out = tmp_path / "out"
    choose = random.Random(0)
    absent = 0
    for _ in range(20):
        child = in_child(lambda: convert(folder, out))
        end = time.monotonic() + choose.uniform(0, takes)
        while time.monotonic() < end and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            time.sleep(0.001)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        if out.exists():
            assert contents(out) == wanted
            shutil.rmtree(out)
        else:
            absent += 1
    assert absent  # some were cut off
    convert(folder, out)  # over what the last one left
    assert contents(out) == wanted
    assert not list(tmp_path.glob(".*"))


@pytest.mark.parametrize("at_byte", [50_000, 1_000_000, 3_800_000])
def test_a_disk_that_becomes_full(at_byte, tmp_path, capfd):
    """The limit on a file's size stands for the disk's end: write fails part of the way."""

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (at_byte, at_byte))
        status = main(["convert", str(FULL), str(tmp_path / "out"), "--vision_tower", str(TOWER)])
        os._exit(status)

    _, status = os.waitpid(in_child(work), 0)
    assert os.waitstatus_to_exitcode(status) == 2
    assert f"{tmp_path / 'out'}: could not be written" in capfd.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_disk_with_too_little_room_is_told_before_writing(tmp_path, monkeypatch):
    usage = namedtuple("usage", "total used free")(10**12, 10**12 - 10**6, 10**6)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(InputError, match=r"takes 0\.04 GB, but 0\.00 GB are free"):
        convert(FULL, tmp_path / "out", vision_tower=TOWER)
    assert list(tmp_path.iterdir()) == []


def test_two_writers_of_one_folder(tmp_path):
    with new_folder(tmp_path / "out") as first:
        (first / "mine").touch()
        with pytest.raises(InputError, match="another process"), new_folder(tmp_path / "out"):
            pass
        assert (first / "mine").exists()
    assert (tmp_path / "out" / "mine").exists()
    with pytest.raises(InputError, match="exists already"), new_folder(tmp_path / "out"):
        pass


def test_an_error_while_writing_leaves_nothing(tmp_path):
    def fails():
        raise OSError(errno.EIO, "the source went away")

    tensors = {"a": LazyTensor.of(torch.ones(3)), "b": LazyTensor((3,), torch.float32, fails)}
    with pytest.raises(InputError, match="went away"), new_folder(tmp_path / "out") as folder:
        write_weights(folder, tensors)
    with pytest.raises(KeyboardInterrupt), new_folder(tmp_path / "out") as folder:
        raise KeyboardInterrupt
    assert list(tmp_path.iterdir()) == []


def test_shards_hold_what_they_say(tmp_path, monkeypatch):
    """A tensor larger than a shard gets its own; nothing is lost, and the sizes keep to the limit."""
    monkeypatch.setattr(folder_module, "SHARD_BYTES", 100)
    tensors = {f"t{n}": torch.full((size,), float(n)) for n, size in enumerate((5, 40, 10, 10, 10, 1))}
    write_weights(tmp_path, {name: LazyTensor.of(tensor) for name, tensor in tensors.items()}, torch.float32)
    index = json.loads((tmp_path / "model.safetensors.index.json").read_text())
    found = {}
    for file in sorted(set(index["weight_map"].values())):
        shard = load_file(tmp_path / file)
        assert len(shard) == 1 or sum(4 * tensor.numel() for tensor in shard.values()) <= 100
        assert all(index["weight_map"][name] == file for name in shard)
        found |= shard
    assert found.keys() == tensors.keys() and all(found[name].equal(tensors[name]) for name in tensors)
    assert index["metadata"]["total_size"] == 4 * sum(tensor.numel() for tensor in tensors.values())
