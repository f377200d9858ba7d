"""A net becomes a file: one table of formats, their writers, verification, and `convert`."""
