"""Registered Caffe layer types, one class per type, one file per type or close family."""
