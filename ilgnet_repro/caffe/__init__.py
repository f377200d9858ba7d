"""Caffe's formats and graphs, without torch: texts, weights, states, upgrades, phases, shared memory and parameters."""
