"""Caffe's solvers: settings, update rules, the loop, snapshots, and runs of many processes."""
