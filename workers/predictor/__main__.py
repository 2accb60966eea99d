"""`python -m workers.predictor`: start the predictor with the settings of the environment."""

import os
import sys

from service.settings import get_settings, is_loopback
from workers.stack import threads


def main() -> None:
    settings = get_settings()
    if not settings.predictor_token.get_secret_value() and not is_loopback(settings.predictor_host):
        sys.exit(
            f"factedit: the predictor is to listen on {settings.predictor_host}, so it needs a secret "
            "that it shares with the API; set FACTEDIT_PREDICTOR_TOKEN for both."
        )
    # OpenMP reads these when torch is imported, so only now may anything import it.
    os.environ.update(threads.environment(settings.predictor_threads))
    from workers.predictor.server import serve

    serve(settings)


if __name__ == "__main__":
    main()
