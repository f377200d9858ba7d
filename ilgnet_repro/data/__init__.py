"""Pictures and labels on their way in: LMDBs, lists, transforms, means and the AVA partitions; no models."""
