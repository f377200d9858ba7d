"""The file formats' names and numbers: `caffe.proto` and the module generated from it."""

# The path of the field that marks a Crop of V1 text (`type: CROP`), from its upgrade until its offset is written.
V1_CROP_MARK = "crop_param.v1"
