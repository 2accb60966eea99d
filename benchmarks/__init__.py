"""Whatever yields a figure that we publish, one command each."""
