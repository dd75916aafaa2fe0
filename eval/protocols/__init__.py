"""Protocols of the literature as data, one YAML file each, run through batch jobs."""
