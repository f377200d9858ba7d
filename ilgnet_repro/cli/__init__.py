"""The `ilgnet` commands, one file per command: parsing and printing only."""
