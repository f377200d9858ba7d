"""Blob and parameter shapes of a modern net by plain arithmetic, independent of the package's shape rules."""

from __future__ import annotations

from math import ceil, prod

STATISTICS = ("BatchNorm",)  # layers whose blobs are not learned


def _first(repeated, default):
    return repeated[0] if repeated else default


def _convolved(shape, p, transposed):
    kernel, stride = _first(p.kernel_size, 0), _first(p.stride, 1)
    pad, dilation = _first(p.pad, 0), _first(p.dilation, 1)
    extent = dilation * (kernel - 1) + 1
    n, c, *sides = shape
    if transposed:
        out = [stride * (side - 1) + extent - 2 * pad for side in sides]
        weight = (c, p.num_output // p.group, kernel, kernel)
    else:
        out = [(side + 2 * pad - extent) // stride + 1 for side in sides]
        weight = (p.num_output, c // p.group, kernel, kernel)
    return (n, p.num_output, *out), [weight] + ([(p.num_output,)] if p.bias_term else [])


def _pooled(shape, p):
    n, c, *sides = shape
    if p.global_pooling:
        return (n, c, 1, 1)
    out = []
    for side in sides:
        size = ceil((side + 2 * p.pad - p.kernel_size) / p.stride) + 1
        if p.pad and (size - 1) * p.stride >= side + p.pad:
            size -= 1
        out.append(size)
    return (n, c, *out)


def _boxes(p):
    sizes = len(p.min_size) + len(p.max_size)
    return sizes + len(p.aspect_ratio) * (2 if p.flip else 1) * len(p.min_size)


def count(net, phase="TEST"):
    """(blob name -> shape, layer name -> parameter shapes) of the layers that ``phase`` includes."""
    shapes, params = {}, {}
    for layer in net.layer:
        if layer.include and {0: "TRAIN", 1: "TEST"}[layer.include[0].phase] != phase:
            continue
        kind, bottoms = layer.type, [shapes[name] for name in layer.bottom]
        shape, blobs = (bottoms[0] if bottoms else None), []
        if kind == "Input":
            shape = tuple(layer.input_param.shape[0].dim)
        elif kind == "Data":
            size = layer.transform_param.crop_size
            shape = (layer.data_param.batch_size, 3, size, size)
            shapes["label"] = shape[:1]
        elif kind in ("Convolution", "Deconvolution"):
            shape, blobs = _convolved(shape, layer.convolution_param, kind == "Deconvolution")
        elif kind == "InnerProduct":
            width, p = prod(shape[1:]), layer.inner_product_param
            blobs, shape = [(p.num_output, width), (p.num_output,)], (shape[0], p.num_output)
        elif kind == "Pooling":
            shape = _pooled(shape, layer.pooling_param)
        elif kind == "Concat":
            axis = layer.concat_param.axis
            assert all(b[:axis] + b[axis + 1 :] == shape[:axis] + shape[axis + 1 :] for b in bottoms), (
                layer.name
            )
            shape = (*shape[:axis], sum(b[axis] for b in bottoms), *shape[axis + 1 :])
        elif kind == "Eltwise":
            assert all(b == shape for b in bottoms), layer.name
        elif kind == "Permute":
            shape = tuple(shape[axis] for axis in layer.permute_param.order)
        elif kind == "Flatten":
            shape = (shape[0], prod(shape[1:]))
        elif kind == "Reshape":
            known = [shape[i] if d == 0 else d for i, d in enumerate(layer.reshape_param.shape.dim)]
            rest = prod(shape) // prod(d for d in known if d > 0)
            shape = tuple(rest if d == -1 else d for d in known)
        elif kind == "Crop":
            assert layer.crop_param.axis == 2
            offset = layer.crop_param.offset[0]
            for side, like in zip(shape[2:], bottoms[1][2:], strict=True):
                assert offset + like <= side, layer.name
            shape = (*shape[:2], *bottoms[1][2:])
        elif kind == "PriorBox":
            shape = (1, 2, 4 * _boxes(layer.prior_box_param) * prod(shape[2:]))
        elif kind == "DetectionOutput":
            loc, conf, boxes = bottoms
            assert loc[1] == boxes[2]
            assert conf[1] * 4 == loc[1] * layer.detection_output_param.num_classes
        elif kind == "BatchNorm":
            blobs = [(shape[1],), (shape[1],), (1,)]
        elif kind == "BN":
            blobs = [(shape[1],)] * 4
        elif kind == "Scale":
            blobs = [(shape[1],)] * (2 if layer.scale_param.bias_term else 1)
        elif kind in ("PReLU", "Normalize"):
            blobs = [(shape[1],)]
        elif kind in ("SoftmaxWithLoss", "Accuracy"):
            shape = ()
        else:
            assert kind in ("ReLU", "Dropout", "LRN", "Softmax"), kind
        if blobs:
            params[layer.name] = blobs
        for top in layer.top[:1]:
            shapes[top] = shape
    return shapes, params


def learned(net):
    """The number of learned values: all except BatchNorm's statistics."""
    _, params = count(net)
    kinds = {layer.name: layer.type for layer in net.layer}
    return sum(prod(s) for name, blobs in params.items() if kinds[name] not in STATISTICS for s in blobs)
