"""Shared by the layer types: base class, registry, fillers, pooling windows, shapes, labels and boxes."""
