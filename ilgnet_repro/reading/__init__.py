"""Images, rows and databases: read by index, transformed, and batched for a net."""
