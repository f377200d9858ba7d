"""Files out: safetensors, ONNX, torch.export, Python source and caffemodels, each verified."""
