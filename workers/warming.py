"""Tells the predictors ahead which version comes, so that its first answer does not wait for the disk."""

import asyncio
import threading

from service.predictor_client import PredictorClient
from service.settings import Settings


def warm(settings: Settings, root_digest: str, overlay_digest: str | None) -> None:
    """Have every predictor read a version's weights; nobody waits for it, and nothing hangs on it."""

    async def told() -> None:
        client = PredictorClient(settings)
        try:
            await client.warm(root_digest, overlay_digest)
        finally:
            await client.close()

    threading.Thread(target=lambda: asyncio.run(told()), name="warming", daemon=True).start()
