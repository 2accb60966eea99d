"""A Celery worker whose child computes nothing: `python -m tests.support.worker`."""

import sys

from service.settings import get_settings
from workers.celery_app import run_worker

if __name__ == "__main__":
    sys.exit(run_worker(get_settings(), works="tests.support.fake_work"))
