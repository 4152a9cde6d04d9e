"""`python -m dalle_ppo.label RUN`, once its arguments are parsed: opens the page."""

import argparse
import importlib
import secrets
import socket
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING

from dalle_ppo.preferences.page.ahead import Ahead, Draws
from dalle_ppo.preferences.page.desk import Desk
from dalle_ppo.preferences.store import Store

if TYPE_CHECKING:
    import uvicorn

HOST = "127.0.0.1"
MOST_IMAGES = 4
MOST_REPEATS = 0.5


def serve(args: argparse.Namespace, store: Store, open_drawer: Callable[[], Draws]) -> int:
    """Serves the page until the command is interrupted.

    Args:
        args: of the command.
        store: is filled.
        open_drawer: loads the policy.

    Raises:
        ValueError: an argument is invalid, the port is taken, or a package is missing.
    """
    check_arguments(args)
    need_packages()
    listener = listen(args.port)
    try:
        ahead = Ahead(open_drawer())
        ahead.start()
        port, token = listener.getsockname()[1], secrets.token_urlsafe(24)
        server = make_server(Desk(store, ahead, args.repeat, args.goal), store, token, port)
        print(f"label pictures at http://{HOST}:{port}/?token={token}")
        print("the address lets in whoever has it, on this machine alone; end with Ctrl-C", flush=True)
        with suppress(KeyboardInterrupt):  # the way to end it
            server.run(sockets=[listener])
        ahead.stop()
    finally:
        listener.close()
    print("\n".join(store.report().lines()))
    return 0


def check_arguments(args: argparse.Namespace) -> None:
    """Checks what only the page cares about.

    Raises:
        ValueError: for an invalid value.
    """
    if args.num_images > MOST_IMAGES:
        raise ValueError(f"--num_images is {args.num_images}; the page shows 2 to {MOST_IMAGES}, keys 1-4")
    if not 0 <= args.port <= 65535:
        raise ValueError(f"--port is {args.port}; it must lie between 0 (any free one) and 65535")
    if not 0 <= args.repeat <= MOST_REPEATS:
        raise ValueError(f"--repeat is {args.repeat:g}; it must lie between 0 and {MOST_REPEATS}")
    if args.goal < 1:
        raise ValueError(f"--goal is {args.goal}; it must be at least 1")


def need_packages() -> None:
    """Imports the server's packages.

    Raises:
        ValueError: one is missing.
    """
    for name in ("starlette", "uvicorn"):
        try:
            importlib.import_module(name)
        except ImportError:
            raise ValueError(f"the page needs the package {name}; pip install -e '.[label]'") from None


def listen(port: int) -> socket.socket:
    """A socket that listens on this machine's own address; no other machine reaches it.

    Args:
        port: 0 for any free one.

    Raises:
        ValueError: the port is taken or not allowed.
    """
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    try:
        if socket.SO_REUSEADDR and hasattr(socket, "AF_UNIX"):  # on Windows it would share a taken port
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((HOST, port))
        listener.listen(64)
    except OSError as error:
        listener.close()
        raise ValueError(
            f"--port {port}: {error.strerror}; is another page open? end it, or give --port 0 for a free one"
        ) from None
    return listener


def make_server(desk: Desk, store: Store, token: str, port: int) -> "uvicorn.Server":
    """The server, which writes no log: addresses hold the token."""
    import uvicorn

    from dalle_ppo.preferences.page.app import build_app

    app = build_app(desk, store, token, port)
    options = {"log_level": "warning", "access_log": False, "server_header": False, "ws": "none"}
    return uvicorn.Server(uvicorn.Config(app, lifespan="off", timeout_graceful_shutdown=2, **options))
