"""Caffe's own commands `caffe train`, `test` and `time`, and the lines they print."""
