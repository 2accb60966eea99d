"""`python -m workers.predictor`: start the predictor with the settings of the environment."""

import os

from service.settings import get_settings


def main() -> None:
    settings = get_settings()
    # OpenMP reads these when torch is imported. With its default spinning, two processes that share
    # cores slow each other more than tenfold.
    os.environ["OMP_WAIT_POLICY"] = "PASSIVE"
    os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = str(settings.predictor_threads)
    from workers.predictor.server import serve

    serve(settings)


if __name__ == "__main__":
    main()
