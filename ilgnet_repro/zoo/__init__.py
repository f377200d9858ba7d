"""Nets as readable Python: each function returns the NetParameter a Caffe user would write by hand."""
