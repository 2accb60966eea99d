"""The schema's history, applied by `service.migrate`."""
