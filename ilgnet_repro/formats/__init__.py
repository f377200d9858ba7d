"""Caffe's files, text and binary, read into messages and arrays and written back."""
