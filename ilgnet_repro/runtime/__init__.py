"""Caffe nets in torch: planned, filled with weights, loaded from files, folded, quantized, made fast, and run."""
