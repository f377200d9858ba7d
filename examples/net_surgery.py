"""Net surgery: the dense layers of a classifier become convolutions, which classify every place of a larger image.

ilgnet caffe run examples/net_surgery.py
"""

import caffe
import numpy as np
from caffe import layers as L
from caffe import params as P


def classifier(size, dense):
    """A small classifier for images of size x size; its head is dense, or the same as convolutions."""
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [1, 3, size, size]})
    net.conv = L.Convolution(net.data, num_output=8, kernel_size=3, weight_filler={"type": "xavier"})
    net.relu = L.ReLU(net.conv, in_place=True)
    net.pool = L.Pooling(net.conv, kernel_size=2, stride=2, pool=P.Pooling.MAX)
    if dense:
        net.fc6 = L.InnerProduct(net.pool, num_output=16, weight_filler={"type": "xavier"})
        net.fc7 = L.InnerProduct(net.fc6, num_output=5, weight_filler={"type": "xavier"})
        net.prob = L.Softmax(net.fc7)
    else:
        net.fc6_conv = L.Convolution(net.pool, num_output=16, kernel_size=5)
        net.fc7_conv = L.Convolution(net.fc6_conv, num_output=5, kernel_size=1)
        net.prob = L.Softmax(net.fc7_conv)
    return net.to_proto()


def write(name, proto):
    with open(name, "w") as file:
        file.write(str(proto))
    return name


caffe.set_mode_cpu()
caffe.set_random_seed(1)
net = caffe.Net(write("dense.prototxt", classifier(12, dense=True)), caffe.TEST)
full = caffe.Net(write("convolution.prototxt", classifier(20, dense=False)), caffe.TEST)

for name in ("conv", "fc6", "fc7"):
    source, target = net.params[name], full.params[name if name == "conv" else f"{name}_conv"]
    print(f"{name}: {source[0].data.shape} to {target[0].data.shape}")
    target[0].data.flat = source[0].data.flat  # the same numbers in the other shape
    target[1].data[...] = source[1].data
full.save("convolution.caffemodel")

image = np.random.RandomState(2).rand(1, 3, 20, 20)
probabilities = full.forward(data=image)["prob"]
print("classes of each place:")
print(probabilities[0].argmax(axis=0))
row, column = 1, 3
part = image[:, :, 2 * row : 2 * row + 12, 2 * column : 2 * column + 12]
alone = net.forward(data=part)["prob"]
print(
    "one place, classified alone, gives the same:",
    np.allclose(alone[0], probabilities[0, :, row, column], atol=1e-6),
)
