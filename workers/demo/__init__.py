"""`make demo`: the main job, end to end, told on the terminal by a client that knows only the HTTP API."""
