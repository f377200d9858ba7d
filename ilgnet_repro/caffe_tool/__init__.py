"""Caffe's own commands `caffe train`, `test` and `time`, and their log lines."""
