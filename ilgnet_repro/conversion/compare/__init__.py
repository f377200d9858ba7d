"""Two forms of one net on the same inputs, laid side by side blob by blob."""
