"""The embedded stack: PostgreSQL, Redis, worker, predictor and API as one family of processes."""
