"""What an operator may set, by `FACTEDIT_*` environment variables; every part reads the same."""

import ipaddress
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

MOST_EDITS = 100_000
"""Of one batch, whatever an operator sets: more are not even looked at."""


class Settings(BaseSettings):
    """One set of settings for the API, the workers and the predictor."""

    model_config = SettingsConfigDict(env_prefix="FACTEDIT_", extra="ignore")

    # Where things live
    data_dir: Path = Path(".factedit")
    database_url: str = "postgresql+psycopg://127.0.0.1:5432/factedit"
    redis_url: str = "redis://127.0.0.1:6379/0"

    # The API
    api_host: str = "127.0.0.1"
    api_port: int = Field(default=8000, ge=0, le=65535)
    api_threads: int = Field(default=32, ge=1)
    insecure_no_auth: bool = False
    max_body_bytes: int = Field(default=8 * 1024 * 1024, ge=1024)
    max_edits: int = Field(default=10_000, ge=1, le=MOST_EDITS)
    max_ranked: int = Field(default=4096, ge=1)
    """Prompts times candidates of one request."""
    max_queued_jobs: int = Field(default=1000, ge=1)
    idempotency_days: int = Field(default=7, ge=1)
    """For how long the first answer to a POST is kept under its Idempotency-Key."""
    long_poll_max_seconds: float = Field(default=60.0, ge=0)

    # The predictor
    predictor_urls: Annotated[list[str], NoDecode] = ["http://127.0.0.1:8100"]
    predictor_token: SecretStr = SecretStr("")
    predictor_host: str = "127.0.0.1"
    predictor_port: int = Field(default=8100, ge=0, le=65535)
    predictor_threads: int = Field(default=1, ge=1)
    predictor_batch: int = Field(default=64, ge=1)
    predictor_queue: int = Field(default=256, ge=1)
    predictor_ranked: int = Field(default=16_384, ge=1)
    """Prompts times candidates that may wait at a predictor, of all requests together."""
    overlays_cached: int = Field(default=64, ge=1)
    overlay_cache_bytes: int = Field(default=2 << 30, ge=0)

    # The workers
    worker_threads: int = Field(default=1, ge=1)
    device: str = "auto"
    score_batch: int = Field(default=64, ge=1)
    edit_cache_bytes: int = Field(default=4 << 30, ge=0)
    """What each set of an edit's examples keeps in memory of what is computed once; more goes to a file."""
    lease_seconds: float = Field(default=15.0, gt=0)
    sweep_seconds: float = Field(default=2.0, gt=0)
    job_max_attempts: int = Field(default=3, ge=1)

    @property
    def store_dir(self) -> Path:
        """The checkpoint store's folder."""
        return self.data_dir / "store"

    @field_validator("predictor_urls", mode="before")
    @classmethod
    def _split(cls, value: Any) -> Any:
        if isinstance(value, str):
            return [url.strip() for url in value.split(",") if url.strip()]
        return value

    @model_validator(mode="after")
    def _open_only_on_loopback(self) -> "Settings":
        if self.insecure_no_auth and not is_loopback(self.api_host):
            raise ValueError(
                f"FACTEDIT_INSECURE_NO_AUTH is for loopback only; the API is to listen on {self.api_host}. "
                "Create a key with `factedit key create` instead."
            )
        return self


def is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@cache
def get_settings() -> Settings:
    """This process's settings."""
    return Settings()
