"""Factedit over HTTP: the few calls the demo makes, and problem+json turned into one sentence."""

import time
from collections.abc import Iterator, Mapping, Sequence
from types import TracebackType
from typing import Any, Self, cast

import httpx2

FINAL = ("succeeded", "failed", "cancelled")
MAX_TOKENS = 16
PATIENCE_SECONDS = 60.0
"""An API that cannot be reached for longer is given up."""
Json = dict[str, Any]


class Problem(Exception):
    """What the API said when it said no."""

    def __init__(self, response: httpx2.Response) -> None:
        self.status = response.status_code
        body = response.json() if "json" in response.headers.get("content-type", "") else {}
        self.code = body.get("code", "")
        details = [f"{e['pointer']}: {e['message']}" for e in body.get("errors", ())]
        text = "; ".join([body.get("detail") or body.get("title") or response.text, *details])
        super().__init__(f"{response.request.method} {response.request.url.path}: {self.status} {text}")


class Api:
    """One client, one key."""

    def __init__(self, url: str, key: str) -> None:
        self._http = httpx2.Client(base_url=url, headers={"Authorization": f"Bearer {key}"}, timeout=120)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._http.close()

    def get(self, path: str, headers: Mapping[str, str] | None = None) -> Json:
        return _body(self._http.get(path, headers=headers))

    def post(self, path: str, body: Json) -> Json:
        return _body(self._http.post(path, json=body))

    def answers(self, model: str, prompts: Sequence[str]) -> list[str]:
        """What a version answers to each prompt, by greedy decoding to its own end."""
        body = self.post("/predict", {"model": model, "prompts": list(prompts), "max_tokens": MAX_TOKENS})
        return [answer["text"] for answer in body["answers"]]

    def compare(self, model: str, other: str, prompts: Sequence[str]) -> tuple[list[str], list[str]]:
        """What two versions answer to the same prompts."""
        asked = {"model": model, "compare_to": other, "prompts": list(prompts), "max_tokens": MAX_TOKENS}
        body = self.post("/predict", asked)
        first, second = body["answers"], body["compared"]["answers"]
        return [answer["text"] for answer in first], [answer["text"] for answer in second]

    def events(self, job: str) -> Iterator[Json]:
        """A job's events as they happen, to its end; a cut connection is taken up where it was cut.

        Raises httpx2.TransportError when the API stays away.
        """
        last = "0"
        heard = time.monotonic()
        while True:
            headers = {"Accept": "text/event-stream", "Last-Event-ID": last}
            try:
                with self._http.stream("GET", f"/jobs/{job}/events", headers=headers) as response:
                    if response.status_code != 200:
                        response.read()
                        raise Problem(response)
                    for event in httpx2.EventSource(response):
                        last, heard = event.id or last, time.monotonic()
                        yield cast("Json", event.json())
                if self.get(f"/jobs/{job}")["status"] in FINAL:
                    return
            except httpx2.TransportError:
                if time.monotonic() - heard > PATIENCE_SECONDS:
                    raise
                time.sleep(0.5)


def _body(response: httpx2.Response) -> Json:
    if response.is_error:
        raise Problem(response)
    return cast("Json", response.json())
