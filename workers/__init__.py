"""The hands: Celery worker, edit and score processes, predictor, and the stack that runs them."""
