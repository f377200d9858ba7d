"""Caffe nets in torch: planned, filled with weights, loaded from files, and run."""
