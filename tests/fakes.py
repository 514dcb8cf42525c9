"""Fake servers in a thread of the test's process, and runs of `bench serve` on them."""

from __future__ import annotations

import asyncio
import threading
from contextlib import ExitStack, contextmanager

from numllama.benchmarks.command import run_part
from numllama.benchmarks.fake import Fake, FakeListener

QUICK = Fake(first=0.002, step=0.001)


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
