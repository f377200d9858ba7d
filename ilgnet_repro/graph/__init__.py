"""A net as frozen nodes: phase rules, unique blob values, shared parameters and shapes; no torch here."""
