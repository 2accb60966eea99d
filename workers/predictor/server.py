"""The predictor's process: torch within its budget, HTTP until told to stop, then a clean end."""

import os
import signal

import uvicorn
from transformers.utils.logging import disable_progress_bar

from factedit.checkpoint_store import CheckpointStore
from service import logs
from service.settings import Settings
from workers.open_files import allow_many
from workers.predictor.app import create_app
from workers.predictor.batcher import Batcher
from workers.predictor.engine import LoadedWeights, TorchEngine
from workers.predictor.room import Room
from workers.predictor.shelf import Shelf

DRAIN_SECONDS = 8
"""For requests already accepted when told to stop; whoever stops us waits 10 seconds."""


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, or until nothing can be answered any more; never returns."""
    logs.configure()
    allow_many()
    disable_progress_bar()  # the log is no terminal
    engine = TorchEngine(
        CheckpointStore(settings.store_dir),
        device=settings.device,
        threads=settings.predictor_threads,
        max_batch=settings.predictor_batch,
    )
    exit_code = 0

    def lost() -> None:
        nonlocal exit_code
        exit_code = 1
        stop()

    def stop(*_: object) -> None:
        server.should_exit = True

    def make_batcher() -> Batcher[LoadedWeights]:
        return Batcher(
            engine,
            Shelf(max_items=settings.overlays_cached, max_bytes=settings.overlay_cache_bytes),
            max_batch=settings.predictor_batch,
            room=Room(prompts=settings.predictor_queue, ranked=settings.predictor_ranked),
        )

    app = create_app(
        make_batcher,
        roots=engine.roots,
        on_lost=lost,
        token=settings.predictor_token.get_secret_value(),
        max_body_bytes=settings.max_body_bytes,
    )
    server = uvicorn.Server(
        uvicorn.Config(
            app,
            host=settings.predictor_host,
            port=settings.predictor_port,
            access_log=False,
            timeout_graceful_shutdown=DRAIN_SECONDS,
            timeout_keep_alive=75,  # longer than the API keeps a connection, so that it is the one to close
        )
    )
    for told_to_stop in (signal.SIGTERM, signal.SIGINT):
        signal.signal(told_to_stop, stop)  # uvicorn raises the signal again once it has drained
    server.run()
    # The compute thread may be amid a batch that nobody waits for; there is nothing to save.
    os._exit(exit_code)
