"""A teacher behind an OpenAI-compatible server, within a budget and a rate.

    Teacher("gpt-4o", server="https://api.openai.com/v1", prices=Prices(2.5, 10.0), max_usd=20.0, rpm=500, ledger=path)

Every request is written to the ledger before it is sent, at the most it can cost, and again with what it did cost by
the server's count. A run that was killed goes on with what the ledger says: too much may be counted, never too little.
"""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from unifiedreward_think.backends import BackendError, Completion, Failure, Tokens
from unifiedreward_think.backends.server import ServerBackend
from unifiedreward_think.backends.server_replies import read_usage
from unifiedreward_think.engine.sampling import Sampling
from unifiedreward_think.errors import RecordError
from unifiedreward_think.strict_json import read_json_lines
from unifiedreward_think.writing import append, open_to_append, write_whole

IMAGE_TOKENS = 2500  # the most a picture is taken to cost before the server says it
SETTLE = 0.02  # seconds between looks at what requests in flight did cost
CHARS_PER_TOKEN = 2  # few, so that the estimate is high


class BudgetSpent(BackendError):
    """The budget is spent; what was judged before is in the files."""


@dataclass(frozen=True, slots=True)
class Prices:
    """US dollars for a million tokens."""

    prompt: float
    completion: float

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what tokens cost.

        >>> Prices(2.5, 10.0).usd(1000, 500)
        0.0075
        """
        return (prompt_tokens * self.prompt + completion_tokens * self.completion) / 1e6


class Teacher(ServerBackend):
    """A server backend that counts money and paces requests.

    Args:
        model: what the server calls the teacher.
        prices: of its tokens.
        ledger: file that remembers what was spent.
        max_usd: no request is sent that could exceed it, earlier runs included; None sets no limit.
        rpm: requests a minute; None sets no limit. The SDK's own retries are not counted.
        options: of `ServerBackend`.

    Raises:
        BackendError: a limit without prices, or nobody answers.
    """

    def __init__(
        self,
        model: str,
        *,
        prices: Prices,
        ledger: Path,
        max_usd: float | None = None,
        rpm: float | None = None,
        **options: Any,
    ) -> None:
        if max_usd is not None and not prices.prompt + prices.completion > 0:
            raise BackendError("--max-usd needs --usd-per-million PROMPT COMPLETION")
        super().__init__(model, **options)
        self._prices, self._max_usd, self._ledger = prices, max_usd, ledger
        self._gap, self._next = (60 / rpm if rpm else 0.0), 0.0
        self._flying = 0
        self._sent, self.spent = read_ledger(ledger)

    def complete(
        self, prompts: Sequence[Mapping[str, Any]], *, sampling: Sampling, seeds: Sequence[Sequence[int]]
    ) -> list[list[Completion | Failure]]:
        """Return completions as `ServerBackend.complete` does.

        Raises:
            BudgetSpent: no request of this batch fits into the budget.
        """
        answers = super().complete(prompts, sampling=sampling, seeds=seeds)
        if all(isinstance(answer, Failure) and answer is _NO_MONEY for samples in answers for answer in samples):
            raise BudgetSpent(f"{self.spent:.4f} USD are spent of {self._max_usd}; raise --max-usd and run again")
        return answers

    async def _ask(
        self, client: Any, messages: list[dict[str, Any]], sampling: Sampling, seed: int, extra: Mapping[str, Any]
    ) -> Completion | Failure:
        most = self._prices.usd(estimate_tokens(messages), sampling.max_new_tokens)
        while self._max_usd is not None and self.spent + most > self._max_usd:
            if not self._flying:
                return _NO_MONEY
            await asyncio.sleep(SETTLE)  # a request in flight will cost less than the most it can
        self._flying += 1
        try:
            return await self._paid(
                partial(super()._ask, messages=messages, sampling=sampling, seed=seed, extra=extra), client, most
            )
        finally:
            self._flying -= 1

    async def _paid(
        self, ask: Callable[[Any], Awaitable[Completion | Failure]], client: Any, most: float
    ) -> Completion | Failure:
        """Send a request that fits the budget, and settle what it cost."""
        number = self._send(most)
        await self._wait()
        used: list[Tokens] = []

        async def create(**request: Any) -> Any:
            reply = await client.chat.completions.with_raw_response.create(**request)
            used.extend(filter(None, [_used(reply.text)]))
            return reply

        raw = SimpleNamespace(create=create)
        metered = SimpleNamespace(chat=SimpleNamespace(completions=SimpleNamespace(with_raw_response=raw)))
        answer = await ask(metered)
        if used:
            self._settle(number, most, self._prices.usd(*used[-1]))
        return answer

    async def _wait(self) -> None:
        now = time.monotonic()
        self._next = max(now, self._next) + self._gap
        await asyncio.sleep(self._next - self._gap - now)

    def _send(self, most: float) -> int:
        self._sent += 1
        self.spent += most
        self._write({"request": self._sent, "at_most_usd": most})
        return self._sent

    def _settle(self, number: int, most: float, usd: float) -> None:
        self.spent += usd - most
        self._write({"request": number, "usd": usd})

    def _write(self, line: Mapping[str, Any]) -> None:
        with open_to_append(self._ledger) as file:
            append(file, json.dumps(line) + "\n")


_NO_MONEY = Failure("the budget is spent; raise --max-usd and run again")


def read_ledger(path: Path) -> tuple[int, float]:
    """Return the number of the last request and what all cost: what is settled, and the most the others can have cost.

    Raises:
        RecordError: a line is no entry.
    """
    last, settled = 0, 0.0
    most: dict[int, float] = {}  # of the requests that are not settled
    if path.is_file():
        data = path.read_bytes()
        if not data.endswith(b"\n"):  # the last line was cut by a kill; it was not sent, or is counted at its most
            write_whole(path, data[: data.rfind(b"\n") + 1])
        for number, row in read_json_lines(path):
            try:
                last = max(last, int(row["request"]))
                if "usd" in row:
                    settled += float(row["usd"])
                    del most[row["request"]]
                else:
                    most[row["request"]] = float(row["at_most_usd"])
            except (KeyError, TypeError, ValueError) as error:
                raise RecordError(
                    f"{path}:{number}: no entry of a ledger ({error!r}); fix or remove the line"
                ) from error
    return last, settled + sum(most.values())


def estimate_tokens(messages: Sequence[Mapping[str, Any]]) -> float:
    """Return more tokens than a prompt has, for the budget before the server counts them.

    >>> estimate_tokens([{"role": "user", "content": [{"type": "text", "text": "abcd"}, {"type": "image_url"}]}])
    2502.0
    """
    pieces = [piece for turn in messages for piece in turn["content"]]
    return sum(len(p["text"]) / CHARS_PER_TOKEN if p["type"] == "text" else IMAGE_TOKENS for p in pieces)


def _used(body: str) -> Tokens | None:
    """Return the tokens that the body of a reply says it used.

    >>> _used('{"usage": {"prompt_tokens": 9, "completion_tokens": 2}}'), _used("[]"), _used("oops")
    (Tokens(prompt=9, completion=2), None, None)
    """
    try:
        return read_usage(json.loads(body))
    except ValueError:
        return None
