"""Caffe's formats and graphs, without torch: prototxts, weights, solver states, upgrades, phases and sharing."""
