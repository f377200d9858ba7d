"""Two backends of one net on the same inputs, compared blob by blob."""
