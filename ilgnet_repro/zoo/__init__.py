"""Builders of common nets: each function returns the NetParameter that a Caffe user would write by hand."""
