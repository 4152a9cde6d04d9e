"""The lock of a folder, between real processes: refused while one lives, free once it is gone."""

import errno
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dalle_ppo.base import lock
from dalle_ppo.base.lock import LOCK_FILE, Busy, locked, refuse_locked

HOLD = """
import os, sys, time
from pathlib import Path
from dalle_ppo.base.lock import locked
with locked(Path(sys.argv[1]), "it"):
    if sys.argv[2] == "fork" and os.fork() == 0:
        print(os.getpid(), flush=True)
        time.sleep(60)
        os._exit(0)
    if sys.argv[2] != "fork":
        print("held", flush=True)
    time.sleep(60)
"""
unix = pytest.mark.skipif(os.name == "nt", reason="needs signals and fork")


@pytest.fixture
def holder(tmp_path):
    """`holder(how) -> (process, its first line)`: a process that holds the lock of `tmp_path`."""
    started = []

    def start(how="hold") -> tuple[subprocess.Popen, str]:
        command = [sys.executable, "-c", HOLD, str(tmp_path), how]
        started.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return started[-1], started[-1].stdout.readline().strip()

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


def take(folder: Path) -> None:
    with locked(folder, "it"):
        assert (folder / LOCK_FILE).is_file()


def test_a_second_process_is_refused_and_told_by_whom(tmp_path, holder):
    process, _ = holder()
    for refused in (take, lambda folder: refuse_locked(folder, "it")):
        with pytest.raises(
            Busy, match=f"it is in use by process {process.pid} on {socket.gethostname()} "
        ) as e:
            refused(tmp_path)
        assert "\n" not in str(e.value)
    take(tmp_path / "another")


@unix
@pytest.mark.parametrize("kill", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_process_leaves_no_lock_behind(tmp_path, holder, kill):
    process, _ = holder()
    process.send_signal(kill)
    process.wait()
    refuse_locked(tmp_path, "it")
    take(tmp_path)
    assert not list(tmp_path.iterdir())


@unix
def test_a_forked_child_does_not_keep_a_killed_parents_lock(tmp_path, holder):
    parent, child = holder("fork")
    with pytest.raises(Busy):
        take(tmp_path)
    parent.kill()
    parent.wait()
    try:
        os.kill(int(child), 0)  # it lives
        take(tmp_path)
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_looking_leaves_nothing_behind(tmp_path):
    refuse_locked(tmp_path / "absent", "it")
    refuse_locked(tmp_path, "it")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_costs_one_warning(tmp_path, monkeypatch, number):
    def no_locks(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(lock, "try_lock", no_locks)
    refuse_locked(tmp_path, "it")
    with pytest.warns(UserWarning, match="it cannot be locked") as seen, locked(tmp_path, "it"):
        pass
    assert len(seen) == 1


@pytest.mark.parametrize("enter", [take, lambda folder: refuse_locked(folder, "it")])
def test_a_lock_file_of_another_user_stays_and_counts_as_held(tmp_path, monkeypatch, enter):
    file, opened = tmp_path / LOCK_FILE, os.open
    file.write_text("{}")

    def forbidden(path, flags, *mode, **options):
        if Path(path) == file and not flags & os.O_EXCL:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return opened(path, flags, *mode, **options)

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(
        ValueError, match=r"^it cannot be locked: .*\.lock may not be opened .*another folder$"
    ):
        enter(tmp_path)
    assert file.read_text() == "{}"


def test_a_folder_that_cannot_be_written_to_is_not_blamed_on_a_lock(tmp_path, monkeypatch):
    def forbidden(path, flags, *mode, **options):
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    monkeypatch.setattr(os, "open", forbidden)
    with pytest.raises(ValueError, match=r"^it cannot be written to by this user; name another folder$"):
        take(tmp_path)


def test_without_locks_a_file_that_was_there_stays(tmp_path, monkeypatch):
    """Its holder may be a machine that has locks on this file system."""

    def no_locks(descriptor):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(lock, "try_lock", no_locks)
    (tmp_path / LOCK_FILE).write_text("{}")
    with pytest.warns(UserWarning, match="it cannot be locked"), locked(tmp_path, "it"):
        pass
    assert (tmp_path / LOCK_FILE).read_text() == "{}"
    (tmp_path / LOCK_FILE).unlink()
    with pytest.warns(UserWarning, match="it cannot be locked"), locked(tmp_path, "it"):
        pass
    assert not list(tmp_path.iterdir())


@unix
def test_a_lock_on_a_file_that_its_holder_removes_meanwhile_does_not_count(tmp_path, monkeypatch):
    """Between opening the file and locking it, its last holder may go and another process come."""
    removed, try_lock = [], lock.try_lock

    def removed_first(descriptor):
        if not removed:
            removed.append((tmp_path / LOCK_FILE).unlink())
        return try_lock(descriptor)

    monkeypatch.setattr(lock, "try_lock", removed_first)
    with locked(tmp_path, "it"):
        monkeypatch.undo()
        with pytest.raises(Busy):
            take(tmp_path)


@unix
def test_of_many_processes_one_holds_at_a_time(tmp_path):
    """Each adds 1 to a number in a file, which loses counts where two are in at once."""
    code = """
import sys, time
from pathlib import Path
from dalle_ppo.base.lock import Busy, locked
number, done = Path(sys.argv[1]) / "number", 0
while done < 30:
    try:
        with locked(Path(sys.argv[1]), "it"):
            value = int(number.read_text())
            time.sleep(0.0005)
            number.write_text(str(value + 1))
            done += 1
    except Busy:
        time.sleep(0.0005)
"""
    (tmp_path / "number").write_text("0")
    workers = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(4)]
    assert [worker.wait() for worker in workers] == [0] * 4
    assert (tmp_path / "number").read_text() == "120"
