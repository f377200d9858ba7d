"""Fast nets: a net run by torch on packed weights, by ONNX Runtime or by OpenVINO, whichever is fastest."""
