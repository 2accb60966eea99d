"""The record: settings, tables, the rules of jobs, versions and promotion, and the HTTP API over them."""
