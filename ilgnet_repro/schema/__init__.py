"""The file formats' names and numbers: `caffe.proto` and the module generated from it."""
