"""The `ilgnet` commands: parsing and printing, one file a command."""
