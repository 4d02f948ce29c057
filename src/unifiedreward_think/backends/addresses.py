"""Which of several servers answers: the one with the fewest requests in flight; one that is gone is left out.

>>> servers = Addresses(["http://a/v1", "http://b/v1"])
>>> with servers.nearest() as first, servers.nearest() as second:
...     (first, second)
('http://a/v1', 'http://b/v1')
>>> servers.leave_out("http://a/v1", "no server answers")  # a note on standard error
>>> with servers.nearest() as first, servers.nearest() as second:
...     (first, second)
('http://b/v1', 'http://b/v1')
"""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from threading import Lock
from typing import Any

from unifiedreward_think.backends import BackendError
from unifiedreward_think.terminal import note

LEFT_OUT = 60.0  # seconds


class Addresses:
    """Addresses of servers of one model.

    Args:
        urls: of each server's API, at least one.

    Raises:
        BackendError: there is none, or one is named twice.
    """

    def __init__(self, urls: Sequence[str]) -> None:
        if not urls or len({url.rstrip("/") for url in urls}) < len(urls):
            raise BackendError(f"server: name one address, or several different ones; found {list(urls)}")
        self.all = tuple(urls)
        self._flying = dict.fromkeys(urls, 0)
        self._gone: dict[str, float] = {}  # address -> until when it is left out
        self._lock = Lock()  # batches may be answered in several threads

    @contextmanager
    def nearest(self, usual: str | None = None, but: Collection[str] = ()) -> Iterator[str]:
        """Yield the address for a request; it counts as in flight within the block.

        Args:
            usual: the address for all requests of a prompt, whose pictures that server has; the first request has none.
            but: addresses where this request has failed.
        """
        with self._lock:
            left = [url for url in self.all if url not in but]
            there = [url for url in left if self._gone.get(url, 0.0) <= time.monotonic()] or left
            chosen = usual if usual in there else min(there, key=self._flying.__getitem__)
            self._flying[chosen] += 1
        try:
            yield chosen
        finally:
            with self._lock:
                self._flying[chosen] -= 1

    def leave_out(self, url: str, reason: str) -> None:
        """Ask a server that is gone nothing for a while, and say so."""
        with self._lock:
            now = time.monotonic()
            known = self._gone.get(url, 0.0) > now
            self._gone[url] = now + LEFT_OUT
        if not known:
            note(f"{reason}; the other servers answer meanwhile, and it is asked again in {LEFT_OUT:g} s")


def models_of(client: Any) -> list[dict[str, Any]]:
    """Return the models that a server lists: any reply will do (`transformers serve` may answer 500), save a refusal.

    Args:
        client: of the OpenAI SDK.

    Raises:
        BackendError: nobody answers there, or the key or the address is refused.
    """
    import openai

    where = str(client.base_url).rstrip("/")
    try:
        return list(json.loads(client.models.with_raw_response.list().text)["data"])
    except openai.APIConnectionError as error:
        raise BackendError(f"{where}: no server answers ({error.__cause__ or error}); start it first") from error
    except (openai.AuthenticationError, openai.PermissionDeniedError) as error:
        raise BackendError(f"{where}: the server refuses the key; set OPENAI_API_KEY") from error
    except openai.NotFoundError as error:
        raise BackendError(f"{where}: no OpenAI API there; does the address lack /v1?") from error
    except (openai.APIStatusError, ValueError, LookupError, TypeError):
        return []


def must_be_one_model(model: str, listed: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
    """Refuse servers that say that they serve different models under one name; one that lists nothing is believed.

    >>> must_be_one_model("judge", {"http://a/v1": [{"id": "judge", "root": "x"}], "http://b/v1": []})

    Args:
        model: the name.
        listed: address -> the models that it lists; vLLM says where it loaded each from.

    Raises:
        BackendError: the places differ, or a server has no model of that name and another has.
    """
    roots = {
        url: [str(card.get("root") or model) for card in cards if card.get("id") == model]
        for url, cards in listed.items()
        if cards
    }
    (first, wanted), *others = roots.items() or [("", [])]
    for url, found in others:
        if found != wanted:
            raise BackendError(
                f"the servers do not serve one model as {model!r}: {first} has {' '.join(wanted) or 'none'}, {url} has "
                f"{' '.join(found) or 'none'}; start all with the same model, from the same path"
            )
