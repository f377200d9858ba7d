"""What weights may be stored in and what a run may compute in, by name; naming them loads no torch."""

# Of large dense weights, in a fast net and in a written file.
WEIGHTS = ("float32", "float16", "bfloat16", "int8")
# Of a training run; "caffe" sums in the order of Caffe's CPU code.
TRAINING = ("float32", "caffe", "float64", "bfloat16", "float16")
