"""Notices when a process of a team has ended, so that no other waits for it for ever.

Each process holds a connection to the first one, which the operating system closes however a process ends.
A machine that fails closes nothing: after `SILENCE` seconds its connections count as lost. Whatever happens,
one line is printed, by the first process if it lives.
"""

import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from typing import Any

SILENCE = 20
"""Seconds without an answer after which the operating system gives a connection up."""
GRACE = {signal.SIGTERM: 1.0, signal.SIGINT: 5.0}
"""Seconds after a signal in which this process may end by itself, or a lost one may become known."""
MEETING = 300.0
"""Seconds that processes wait for each other at the start."""
LOST = (
    "error: process {} of {} has ended, so the others ended; the newest checkpoint is intact: continue with "
    "--resume, with any number of processes"
)
STOPPED = (
    "error: stopped by the launcher or by a signal; the newest checkpoint is intact: continue with --resume"
)


class Watch(threading.Thread):
    """Watches the other processes of a team; ends this one when one of them is lost or says so.

    Args:
        rank: number of this process.
        size: number of processes.
        peers: connections by rank: the first process's to all others, and the others' to the first.
    """

    def __init__(self, rank: int, size: int, peers: dict[int, socket.socket]) -> None:
        super().__init__(name="watch", daemon=True)
        self.rank, self.size, self.peers = rank, size, peers
        self._ending, self._ended, self._alone = threading.Lock(), False, threading.Event()
        self._received = dict.fromkeys(peers, b"")
        self._signals, signalled = socket.socketpair()
        signalled.setblocking(False)
        self._signalled = signalled  # kept open
        self._deadline: tuple[float, int] | None = None
        signal.signal(signal.SIGTERM, lambda *_: None)  # a byte arrives even while C++ code waits
        signal.set_wakeup_fd(signalled.fileno(), warn_on_full_buffer=False)

    def end(self, text: str | None, code: int) -> None:
        """Ends all processes of the team; the first one prints the line, whoever knows it.

        Args:
            text: the line; None prints nothing.
            code: exit code.
        """
        if self.rank != 0:
            self._ended = True
            self._tell({"end": text, "code": code})
            self._alone.wait(SILENCE)  # the first process answers, and this one ends
            self._exit(None, code)
        self._exit(text, code)

    def leave(self) -> None:
        """Says that this process ends because its work is done."""
        self._ended = True
        self._tell({"bye": True})

    def run(self) -> None:
        selector = selectors.DefaultSelector()
        selector.register(self._signals, selectors.EVENT_READ, None)
        for rank, peer in self.peers.items():
            selector.register(peer, selectors.EVENT_READ, rank)
        while True:
            left = None if self._deadline is None else max(0.0, self._deadline[0] - time.monotonic())
            for key, _ in selector.select(left):
                if key.data is None:
                    self._take_signals(self._signals.recv(64))
                elif not self._take(key.data):
                    selector.unregister(key.fileobj)
            if self._deadline is not None and time.monotonic() >= self._deadline[0]:
                self._exit(STOPPED if self.rank == 0 else None, 128 + self._deadline[1])

    def _take_signals(self, numbers: bytes) -> None:
        for number in numbers:
            if number in GRACE and self._deadline is None:
                self._deadline = time.monotonic() + GRACE[number], number

    def _take(self, rank: int) -> bool:
        """Reads what a peer says; False if there is nothing more to come from it."""
        try:
            data = self.peers[rank].recv(65536)
        except OSError:
            data = b""
        *lines, self._received[rank] = (self._received[rank] + data).split(b"\n")
        for line in lines:
            message: dict[str, Any] = json.loads(line)
            if "bye" in message:
                return False
            self._exit(message["end"] if self.rank == 0 else None, message["code"])
        if not data and not self._ended:
            self._exit(LOST.format(rank, self.size) if self._speaks() else None, 1)
        if not data and self.rank != 0:
            self._alone.set()
        return bool(data)

    def _speaks(self) -> bool:
        """Whether this process prints; where the first is lost, one process of each machine does."""
        return self.rank <= 1 or os.environ.get("LOCAL_RANK") == "0"

    def _tell(self, message: dict[str, Any]) -> None:
        for peer in self.peers.values():
            try:
                peer.sendall(json.dumps(message).encode() + b"\n")
            except OSError:
                continue  # it has ended

    def _exit(self, text: str | None, code: int) -> None:
        self._ending.acquire()  # never released: whoever comes second waits for the end
        if text is not None:
            with suppress(OSError):  # nobody may read them any more
                sys.stdout.flush()
            with suppress(OSError):
                print(f"\n{text}", file=sys.stderr, flush=True)  # a progress bar may be on the line
        if self.rank == 0:
            self._tell({"end": None, "code": code})
            self._until_they_ended()
        os._exit(code)

    def _until_they_ended(self) -> None:
        """Reads on for a moment: a connection that is closed with unread data takes back what it has sent."""
        end = time.monotonic() + 2
        for peer in self.peers.values():
            try:
                peer.settimeout(max(0.01, end - time.monotonic()))
                while peer.recv(65536):
                    pass
            except OSError:
                continue


def start_watch(store: Any, rank: int, size: int) -> Watch:
    """Connects all processes with the first one and starts watching.

    Args:
        store: torch.distributed's, where the first process leaves its port.
        rank: number of this process.
        size: number of processes.

    Raises:
        OSError: they do not come together.
    """
    if rank == 0:
        secret = secrets.token_hex(16)
        with socket.create_server(("", 0)) as server:
            store.set("dalle_ppo/watch", f"{server.getsockname()[1]} {secret}")
            peers = _accept(server, size - 1, secret)
    else:
        port, secret = store.get("dalle_ppo/watch").decode().split()
        peer = socket.create_connection((os.environ["MASTER_ADDR"], int(port)), timeout=MEETING)
        peer.sendall(f"{secret} {rank:08d}".encode())
        peers = {0: peer}
    for peer in peers.values():
        _keep_alive(peer)
    watch = Watch(rank, size, peers)
    watch.start()
    return watch


def _accept(server: socket.socket, count: int, secret: str) -> dict[int, socket.socket]:
    """The connections of `count` processes that know the secret, by rank."""
    peers: dict[int, socket.socket] = {}
    server.settimeout(MEETING)
    while len(peers) < count:
        peer, _ = server.accept()
        peer.settimeout(MEETING)
        word, _, rank = (
            peer.recv(len(secret) + 9, socket.MSG_WAITALL).decode("ascii", "replace").partition(" ")
        )
        if secrets.compare_digest(word.encode(), secret.encode()):
            peers[int(rank)] = peer
        else:
            peer.close()
    return peers


def _keep_alive(peer: socket.socket) -> None:
    """Makes the operating system ask every few seconds whether the other machine still answers."""
    peer.settimeout(None)
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in (("TCP_KEEPIDLE", 5), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", SILENCE // 5 - 1)):
        if hasattr(socket, name):
            peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
