"""One adapter per family of pipelines, as plain data."""
