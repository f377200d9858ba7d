"""What the fast path keeps large dense weights in; here, so that naming them does not load torch."""

PRECISIONS = ("float32", "float16", "bfloat16", "int8")
