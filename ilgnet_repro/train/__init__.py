"""Training as Caffe's solvers do it: settings, update rules, data, snapshots, the loop, many processes."""
