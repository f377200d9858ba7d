"""What a training run may compute in; here, so that naming them does not load torch."""

PRECISIONS = ("float32", "caffe", "float64", "bfloat16", "float16")
