"""Clients of the serving bench, in a process of their own so that they take no time from the service's interpreter.

Standard library only: a client costs about a third of a millisecond per request. Reads one JSON object from standard
input, writes one to standard output; see `Plan`.
"""

from __future__ import annotations

import http.client
import json
import random
import sys
import threading
import time
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class Plan:
    """What the clients do: each sends one request after the other until time is up or all are sent."""

    port: int
    clients: int
    users: int
    """Each request is for one of the users u0 … u(users - 1), drawn evenly."""
    prompts: tuple[str, ...]
    seconds: float = 3600.0
    requests: int = 0
    """0: until the time is up."""
    seed: int = 0
    stream: bool = True
    token: str = ""
    tries: int = 1
    """More: what fails is sent again, as OpenAI's client does."""
    keep: bool = False
    """Also give back what was asked for and what came."""


@dataclass
class Seen:
    """One request: seconds since the start of the run, seconds to the first byte of text and to the end."""

    at: float
    first: float
    whole: float
    statuses: list[int]
    """Of every try; 0: the connection broke, 599: a stream ended with an error."""
    user: int = -1
    prompt: int = -1
    text: str = ""


class Crowd:
    """Threads that share one list of what they saw."""

    def __init__(self, plan: Plan) -> None:
        self.plan, self.seen = plan, list[Seen]()
        self._left = plan.requests or 1 << 60
        self._lock = threading.Lock()
        self._draw = random.Random(plan.seed)
        self._started = time.perf_counter()

    def run(self) -> float:
        """All clients to the end; seconds."""
        threads = [threading.Thread(target=self._client) for _ in range(self.plan.clients)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return time.perf_counter() - self._started

    def _next(self) -> tuple[int, int] | None:
        with self._lock:
            if self._left <= 0 or time.perf_counter() - self._started > self.plan.seconds:
                return None
            self._left -= 1
            return self._draw.randrange(self.plan.users), self._draw.randrange(len(self.plan.prompts))

    def _client(self) -> None:
        line = http.client.HTTPConnection("127.0.0.1", self.plan.port, timeout=120)
        while (wanted := self._next()) is not None:
            self.seen.append(self._ask(line, *wanted))
        line.close()

    def _ask(self, line: http.client.HTTPConnection, user: int, prompt: int) -> Seen:
        body = {
            "model": f"user:u{user}",
            "prompt": self.plan.prompts[prompt],
            "max_tokens": 8,
            "temperature": 0,
        }
        sent = json.dumps(body | {"stream": self.plan.stream})
        now = time.perf_counter()
        seen = Seen(now - self._started, 0.0, 0.0, [])
        for attempt in range(self.plan.tries):
            if attempt:
                time.sleep(min(0.5 * 2**attempt, 4.0))
            status, seen.first, text = self._try(line, sent)
            seen.statuses.append(status)
            if status == 200:
                break
        seen.whole = time.perf_counter() - now
        if self.plan.keep:
            seen.user, seen.prompt, seen.text = user, prompt, text
        return seen

    def _try(self, line: http.client.HTTPConnection, sent: str) -> tuple[int, float, str]:
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.plan.token}"}
        started, first, got = time.perf_counter(), 0.0, []
        try:
            line.request("POST", "/v1/completions", sent, headers)
            answer = line.getresponse()
            while chunk := answer.readline():
                first = first or time.perf_counter() - started
                got.append(chunk)
            answer.read()  # an answer of known length counts as read only then
        except (OSError, http.client.HTTPException):
            line.close()
            return 0, first, ""
        if answer.status != 200:
            return answer.status, first, ""
        text = streamed(got) if self.plan.stream else json.loads(b"".join(got))["choices"][0]["text"]
        return (599, first, "") if text is None else (200, first, text)


def streamed(lines: list[bytes]) -> str | None:
    """The text of a stream; None when it did not end as it should."""
    events = [line[6:].strip() for line in lines if line.startswith(b"data: ")]
    if not events or events[-1] != b"[DONE]":
        return None
    return "".join(json.loads(event)["choices"][0]["text"] for event in events[:-1])


def main() -> None:
    given: dict[str, Any] = json.load(sys.stdin)
    crowd = Crowd(Plan(**given | {"prompts": tuple(given["prompts"])}))
    seconds = crowd.run()
    json.dump({"seconds": seconds, "seen": [asdict(seen) for seen in crowd.seen]}, sys.stdout)


if __name__ == "__main__":
    main()
