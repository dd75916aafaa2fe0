"""One caching method per file."""
