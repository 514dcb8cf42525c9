"""A tap across processes: a stage asks, the driver's tap answers."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..model.trace import Tap


class Mailbox:
    """Questions of a stage and answers of the driver; an actor whose methods wait for each other."""

    def __init__(self) -> None:
        import asyncio

        self.questions: asyncio.Queue[tuple[str, int, np.ndarray] | None] = asyncio.Queue()
        self.answers: asyncio.Queue[np.ndarray | None] = asyncio.Queue()

    async def ask(self, name: str, il: int, value: np.ndarray) -> np.ndarray | None:
        """Pass a value to the driver.  -> what its tap returned, None for the value itself"""
        await self.questions.put((name, il, value))
        return await self.answers.get()

    async def question(self) -> tuple[str, int, np.ndarray] | None:
        """Wait for the next value."""
        return await self.questions.get()

    async def answer(self, value: np.ndarray | None) -> None:
        """Answer the last question."""
        await self.answers.put(value)


class RemoteAsk:
    """The stage's side: a function of name, layer and value."""

    def __init__(self, mailbox: Any):
        self.mailbox = mailbox

    def __call__(self, name: str, il: int, value: np.ndarray) -> np.ndarray | None:
        import ray

        answer: np.ndarray | None = ray.get(self.mailbox.ask.remote(name, il, value))
        return answer


class TapRelay:
    """The driver's side of one pass."""

    def __init__(self, ray: Any):
        self._ray = ray
        self._mailbox = ray.remote(num_cpus=0, max_concurrency=4)(Mailbox).remote()
        self.remote = RemoteAsk(self._mailbox)
        self._question = self._mailbox.question.remote()  # stays asked when a stage is done, for the next one

    def serve(self, result: Any, tap: Tap) -> Any:
        """Answer questions with `tap` until `result`, the stage's, is there.  -> it"""
        while True:
            (ready, *_), _ = self._ray.wait([self._question, result])
            if ready == result:
                return self._ray.get(result)
            name, il, value = self._ray.get(self._question)
            changed = tap(name, il, value)
            self._mailbox.answer.remote(None if changed is value else changed)
            self._question = self._mailbox.question.remote()
