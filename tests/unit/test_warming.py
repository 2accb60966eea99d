"""A predictor is told ahead which version comes; whoever tells it waits for nothing."""

import json
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

from pydantic import SecretStr

from service.settings import Settings
from workers.warming import warm

Said = tuple[str, str | None, object]


@contextmanager
def predictor() -> Iterator[tuple[str, list[Said]]]:
    """An address, and what is said there."""
    said: list[Said] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            said.append((self.path, self.headers["Authorization"], body))
            self.send_response(200)
            self.end_headers()

    server = HTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}", said
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


def test_every_predictor_hears_of_it_though_one_is_gone_and_one_is_slow() -> None:
    with socket.socket() as silent, predictor() as (url, said), predictor() as (other, also_said):
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        slow = f"http://127.0.0.1:{silent.getsockname()[1]}"
        urls = ["http://127.0.0.1:1", slow, url, other]
        settings = Settings(predictor_urls=urls, predictor_token=SecretStr("t"))
        began = time.monotonic()
        warm(settings, "a" * 64, "b" * 64)
        assert time.monotonic() - began < 0.5
        while not (said and also_said):
            assert time.monotonic() - began < 10
            time.sleep(0.01)
    expected = ("/warm", "Bearer t", {"root_digest": "a" * 64, "overlay_digest": "b" * 64})
    assert said == also_said == [expected]
