"""Features of images from a layer in the middle of a net, and which images are alike by them.

Run it by `ilgnet caffe run examples/feature_extraction.py`: `import caffe` is pycaffe's, as in a script for Caffe.
"""

import os
import tempfile

import caffe
import numpy as np
from caffe import layers as L
from caffe import params as P

SIZE = 24


def deploy():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, SIZE, SIZE]))
    n.conv1 = L.Convolution(n.data, kernel_size=5, stride=2, num_output=8)
    n.relu1 = L.ReLU(n.conv1, in_place=True)
    n.pool1 = L.Pooling(n.conv1, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    n.fc2 = L.InnerProduct(n.pool1, num_output=16)
    n.relu2 = L.ReLU(n.fc2, in_place=True)
    n.fc3 = L.InnerProduct(n.fc2, num_output=5)
    n.prob = L.Softmax(n.fc3)
    return n.to_proto()


def images():
    """Two images of stripes, one of them darker, and one of a checkerboard."""
    rows, columns = np.mgrid[:SIZE, :SIZE] // 6
    stripes, board = columns % 2, (rows + columns) % 2
    plain = {"stripes": stripes, "dark stripes": 0.6 * stripes, "checkerboard": board}
    return {name: np.repeat(image[:, :, None], 3, axis=2).astype(np.float32) for name, image in plain.items()}


with tempfile.TemporaryDirectory() as folder:
    prototxt = os.path.join(folder, "deploy.prototxt")
    with open(prototxt, "w") as file:
        file.write(str(deploy()))
    net = caffe.Net(prototxt, caffe.TEST)

draw = np.random.RandomState(0)  # in place of Net(prototxt, caffemodel, caffe.TEST)
for blobs in net.params.values():
    blobs[0].data[...] = draw.standard_normal(blobs[0].data.shape) * np.sqrt(2 / blobs[0].data[0].size)
    blobs[1].data[...] = 0

transformer = caffe.io.Transformer({"data": net.blobs["data"].data.shape})
transformer.set_transpose("data", (2, 0, 1))
transformer.set_mean("data", np.full(3, 0.4))

features = {}
for name, image in images().items():
    net.blobs["data"].data[...] = transformer.preprocess("data", image)
    net.forward(end="relu2")  # what comes after it is not computed
    features[name] = net.blobs["fc2"].data[0].copy()

print("features:", len(features["stripes"]), "of fc2")
for one, a in features.items():
    for other, b in features.items():
        if one < other:
            cosine = a @ b / np.sqrt((a @ a) * (b @ b))
            print(f"{one} and {other}: {cosine:.3f}")
