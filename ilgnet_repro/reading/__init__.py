"""An image, a row, a database: read by number, transformed, and batched for a net."""
