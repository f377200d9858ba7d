"""What a net's data layers read: rows by number, from LMDBs, picture lists and HDF5 files, as batches."""
