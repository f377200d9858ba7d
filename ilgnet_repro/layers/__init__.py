"""One class a Caffe layer type: its shape rule, torch module, ONNX nodes and source, side by side."""
