"""Names of the precisions of weights and of training; this module does not import torch."""

# For large dense weights, in a fast net and in a saved file.
WEIGHTS = ("float32", "float16", "bfloat16", "int8")
# For training; "caffe" sums in the order of Caffe's CPU code.
TRAINING = ("float32", "caffe", "float64", "bfloat16", "float16")
