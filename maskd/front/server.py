"""The daemon from start to end, top to bottom: build, load vocabularies, listen, serve, drain, stop.

``run(config, stop)`` gets the reason to stop as an argument, so that tests run it without signals.
Owns: the order of these steps. Knows nothing about: flags, signals (``maskd.__main__``), grammar libraries, protobuf.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import fcntl
import os
import socket
from collections.abc import Awaitable, Iterator
from pathlib import Path
from typing import Any

import grpc
import structlog
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection

from maskd.errors import ConfigError, MaskdError
from maskd.front.access import check_tcp, interceptors, server_credentials
from maskd.front.compile_desk import CompileDesk
from maskd.front.config import Config
from maskd.front.data_socket import DataSocket
from maskd.front.decoding import Decoding
from maskd.front.service import SERVICE, MaskService
from maskd.front.sessions import SessionBook
from maskd.front.vocabulary_shelf import VocabularyShelf
from maskd.front.worker_process import Worker
from maskd.front.zygote_process import Zygote
from maskd.rpc.address import grpc_address, parse_listen
from maskd.tokenizer_files import load_vocabulary
from maskd.vocabulary import Vocabulary

__all__ = ["run"]

_log = structlog.get_logger()


async def run(config: Config, stop: Awaitable[object]) -> None:
    """Serves until ``stop`` completes, then drains.

    Raises:
        ConfigError: before anything listens: bad address, unreadable vocabulary, unknown backend, already running.
    """
    scheme, address = parse_listen(config.listen)
    if scheme == "tcp":
        check_tcp(config)
    async with contextlib.AsyncExitStack() as stack:
        if scheme == "unix":
            stack.enter_context(_runtime_directory(address))
        zygote = Zygote(config)
        shelf = VocabularyShelf(
            config, zygote, lambda number, nursery: Worker(number, config, nursery, book.on_closed, book.blame)
        )
        book = SessionBook(config, shelf.workers, CompileDesk(config, shelf.compile))
        vocabularies = _read_vocabularies(config)
        stack.push_async_callback(zygote.stop)
        stack.push_async_callback(shelf.stop)
        try:
            await zygote.start()
        except MaskdError as error:
            raise ConfigError(f"the daemon cannot start: {error.message}") from None
        stopping: asyncio.Future[Any] = asyncio.ensure_future(stop)
        loading: asyncio.Future[Any] = asyncio.gather(*(_add(shelf, *source) for source in vocabularies))
        await asyncio.wait({stopping, loading}, return_when=asyncio.FIRST_COMPLETED)
        if not loading.done():
            loading.cancel()
            return
        await loading
        if scheme == "unix":
            data_socket = DataSocket(address + ".data", book.claim)
            stack.callback(data_socket.close)
            _background(stack, data_socket.serve())
        _background(stack, book.expire())
        server, health_of = _grpc_server(
            config,
            MaskService(
                book, shelf, backends=config.backends, worker_count=config.workers, shared_memory=scheme == "unix"
            ),
        )
        await health_of.set("", health_pb2.HealthCheckResponse.SERVING)
        await health_of.set(SERVICE, health_pb2.HealthCheckResponse.SERVING)
        _listen(server, config, scheme)
        await server.start()
        _background(stack, _watch_health(zygote, shelf.workers, health_of))
        _log.info(
            "ready",
            listen=config.listen,
            workers=config.workers,
            backends=config.backends,
            vocabularies=[v.name for v in shelf],
        )
        await stopping
        _log.info("draining", sessions=len(book), seconds=config.drain_seconds)
        await health_of.enter_graceful_shutdown()
        await book.drain(config.drain_seconds)
        await server.stop(grace=1.0)
        _log.info("stopped")


def _background(stack: contextlib.AsyncExitStack, coroutine: Awaitable[None]) -> None:
    task = asyncio.ensure_future(coroutine)

    async def end() -> None:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    stack.push_async_callback(end)


@contextlib.contextmanager
def _runtime_directory(path: str) -> Iterator[None]:
    """Makes the directory of the socket (0700), and holds a lock: one daemon for each path.

    A stale socket is replaced. If the daemon does not start, none of its files and directories stay.

    Raises:
        ConfigError: the directory is another user's or cannot be used, or the path is no socket or served already.
    """
    directory, sockets = Path(path).parent, (Path(path), Path(path + ".data"))
    with contextlib.ExitStack() as refused, contextlib.ExitStack() as held:
        try:
            for part in (*reversed(directory.parents), directory):
                if not part.exists():
                    part.mkdir(mode=0o700, exist_ok=True)
                    refused.callback(_remove_if_empty, part)
            if directory.stat().st_uid not in (os.getuid(), 0):
                raise ConfigError(
                    f"{directory} belongs to another user; choose a directory of your own", field="listen"
                )
            for there in sockets:  # before the lock is made: a refusal leaves nothing
                if os.path.lexists(there) and not there.is_socket():
                    raise ConfigError(f"{there} is there already and is no socket; choose another path", field="listen")
            _lock(path, held)
            for there in sockets:
                if _is_served(there):
                    raise ConfigError(f"another program serves {there}; choose another path", field="listen")
            for there in sockets:
                there.unlink(missing_ok=True)
                held.callback(there.unlink, missing_ok=True)
        except OSError as error:
            raise ConfigError(f"cannot use {error.filename or directory}: {error.strerror}", field="listen") from None
        yield
        refused.pop_all()  # the directory of a daemon that has served stays: other containers may have mounted it


def _lock(path: str, held: contextlib.ExitStack) -> None:
    """Holds the lock of ``path`` until ``held`` ends, which removes it.

    Raises:
        ConfigError, OSError: no new file was left.
    """
    lock = os.open(path + ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    held.callback(os.close, lock)
    if os.fstat(lock).st_size:
        raise ConfigError(f"{path}.lock is there already and is no lock of maskd; choose another path", field="listen")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        ours = os.path.samestat(os.fstat(lock), os.stat(path + ".lock"))  # noqa: PTH116
    except (BlockingIOError, FileNotFoundError):  # held, or just removed by a daemon that stops
        ours = False
    if not ours:
        raise ConfigError(f"another maskd serves {path}", field="listen")
    held.callback(Path(path + ".lock").unlink, missing_ok=True)


def _is_served(path: Path) -> bool:
    """Whether a process listens on the unix socket at ``path``. A killed daemon leaves a socket without a listener.

    Raises:
        OSError.
    """
    with socket.socket(socket.AF_UNIX) as probe:
        probe.setblocking(False)
        try:
            probe.connect(os.fsencode(path))
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except OSError as error:
            # EAGAIN: its backlog is full. EPROTOTYPE: it is no stream socket; a data socket is none.
            if error.errno not in (errno.EAGAIN, errno.EPROTOTYPE):
                raise
        return True


def _remove_if_empty(directory: Path) -> None:
    with contextlib.suppress(OSError):
        directory.rmdir()


def _read_vocabularies(config: Config) -> list[tuple[str, Vocabulary]]:
    read = []
    for source in config.vocabularies:
        with _naming(source.path):
            vocabulary = load_vocabulary(
                source.path, vocab_size=source.vocab_size, stop_token_ids=source.stop_token_ids, name=source.name
            )
            read.append((source.path, vocabulary))
    return read


async def _add(shelf: VocabularyShelf, path: str, vocabulary: Vocabulary) -> None:
    with _naming(path):
        await shelf.add(vocabulary)


@contextlib.contextmanager
def _naming(path: str) -> Iterator[None]:
    try:
        yield
    except MaskdError as error:
        raise ConfigError(f"vocabulary {path}: {error.message}", field="vocabularies") from None


def _grpc_server(config: Config, service: MaskService) -> tuple[grpc.aio.Server, health.aio.HealthServicer]:
    server = grpc.aio.server(
        interceptors=[*interceptors(config), Decoding()],
        maximum_concurrent_rpcs=config.concurrent_calls,
        options=[
            ("grpc.max_receive_message_length", config.message_bytes),
            ("grpc.max_send_message_length", -1),
            ("grpc.so_reuseport", 0),
            ("grpc.max_concurrent_streams", config.concurrent_calls),
        ],
    )
    health_of = health.aio.HealthServicer()
    health_pb2_grpc.add_HealthServicer_to_server(health_of, server)
    service.add_to(server)
    reflection.enable_server_reflection((SERVICE, health.SERVICE_NAME, reflection.SERVICE_NAME), server)
    return server, health_of


def _listen(server: grpc.aio.Server, config: Config, scheme: str) -> None:
    address, credentials = grpc_address(config.listen), server_credentials(config)
    mask = os.umask(0o177)  # the socket is never open to others, not even for a moment
    try:
        if scheme == "tcp" and credentials is not None:
            server.add_secure_port(address, credentials)
        else:
            server.add_insecure_port(address)
    except RuntimeError as error:
        raise ConfigError(f"cannot listen on {config.listen}: {error}", field="listen") from None
    finally:
        os.umask(mask)


async def _watch_health(zygote: Zygote, workers: list[Worker], health_of: health.aio.HealthServicer) -> None:
    """SERVING while a worker can take a session; before the first vocabulary, while one can be loaded."""
    serving = True
    while True:
        await asyncio.sleep(0.1)
        now = any(worker.is_ready for worker in workers) if workers else zygote.is_ready
        if now != serving:
            serving = now
            state = health_pb2.HealthCheckResponse.SERVING if now else health_pb2.HealthCheckResponse.NOT_SERVING
            for service in ("", SERVICE):
                await health_of.set(service, state)
