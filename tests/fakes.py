"""Fake servers in a thread of the test's process, and runs of `bench serve` on them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, contextmanager

from numllama.benchmarks.client import new_client
from numllama.benchmarks.command import run_part
from numllama.benchmarks.fake import Fake, FakeClock, FakeListener, FakeTransport

QUICK = Fake(first=0.002, step=0.001)
CLIENTS = ("serve", "load", "equality", "probe")  # modules that open connections


def serve_on_a_clock(monkeypatch, *arguments, made=FakeTransport, **fakes):
    """Run `bench serve` on fakes without a network, on a clock that they move: no time passes.  -> exit status

    made   (fake, clock) -> the transport of a fake
    """
    clock, ports = FakeClock(), {name: 1 + i for i, name in enumerate(fakes)}
    transports = {ports[name]: made(fake, clock) for name, fake in fakes.items()}
    for module in CLIENTS:
        monkeypatch.setattr(
            f"numllama.benchmarks.{module}.new_client",
            lambda contender, transport=None: new_client(contender, transports[contender.address[1]]),
        )
    for module in ("client", "serve", "command", "rounds"):
        monkeypatch.setattr(f"numllama.benchmarks.{module}.perf_counter", clock)
    servers = [f"{name}={fake.wire}+http://192.0.2.1:{ports[name]}#fake" for name, fake in fakes.items()]
    return run_part(["serve", *servers, *arguments])


@contextmanager
def faked(fake):
    """Serve a fake, and yield its address in the form of `bench serve`."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def listen():
        return await asyncio.start_server(FakeListener(fake).answer, "127.0.0.1", 0)

    server = asyncio.run_coroutine_threadsafe(listen(), loop).result()
    try:
        yield f"{fake.wire}+http://127.0.0.1:{server.sockets[0].getsockname()[1]}#fake"
    finally:

        async def close():
            server.close()
            await asyncio.sleep(0.01)
            for task in asyncio.all_tasks() - {asyncio.current_task()}:
                task.cancel()

        asyncio.run_coroutine_threadsafe(close(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


def serve(*arguments, **fakes):
    """Run `bench serve` on fakes under their names.  -> exit status"""
    with ExitStack() as stack:
        servers = [f"{name}={stack.enter_context(faked(fake))}" for name, fake in fakes.items()]
        return run_part(["serve", *servers, *arguments])
