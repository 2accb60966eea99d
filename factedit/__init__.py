"""Factedit's editing library: a model and edits in, a small overlay out, the root untouched."""
