"""The HTTP API: one module a noun; it records and forwards, and computes nothing itself."""
