"""One caching method per file: its config, and the policy that the config stands for."""
