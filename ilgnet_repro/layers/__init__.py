"""Registered Caffe layer types, one class a type, one file a type or close family."""
