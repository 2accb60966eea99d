"""How every process logs: one line an event, on standard error, with no local variables in a traceback."""

import sys

import structlog


def configure() -> None:
    """Idempotent. A traceback's locals may hold a key or a user's words, so none is ever written."""
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            structlog.processors.ExceptionRenderer(),
            structlog.processors.LogfmtRenderer(key_order=["timestamp", "level", "event"]),
        ],
        logger_factory=_to_stderr,
        cache_logger_on_first_use=False,
    )


def _to_stderr(*_: object) -> structlog.PrintLogger:
    # Looked up each time: whoever redirects standard error redirects the log.
    return structlog.PrintLogger(sys.stderr)
