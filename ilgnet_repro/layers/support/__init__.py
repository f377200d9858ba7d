"""What several layer types share: the base class, the registry, fillers, windows, axes, labels and boxes."""
