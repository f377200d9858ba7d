"""Copying weights between nets: by file and layer name, by memory, and blob by blob.

ilgnet caffe run examples/copy_weights.py
"""

import caffe
import numpy as np
from caffe import layers as L


def text(classes, head):
    """Two layers and a head of its own name."""
    net = caffe.NetSpec()
    net.data = L.Input(shape={"dim": [4, 6]})
    net.hidden = L.InnerProduct(net.data, num_output=8, weight_filler={"type": "gaussian", "std": 1})
    net.active = L.TanH(net.hidden)
    setattr(
        net,
        head,
        L.InnerProduct(net.active, num_output=classes, weight_filler={"type": "gaussian", "std": 1}),
    )
    return str(net.to_proto())


for name, content in (("old.prototxt", text(10, "classes")), ("new.prototxt", text(3, "parts"))):
    with open(name, "w") as file:
        file.write(content)

caffe.set_random_seed(3)
old = caffe.Net("old.prototxt", caffe.TEST)
old.save("old.caffemodel")

# By name from a file: what only one of them has is left as it is, and said on stderr.
new = caffe.Net("new.prototxt", caffe.TRAIN)
new.copy_from("old.caffemodel")
for name, blobs in new.params.items():
    same = name in old.params and np.array_equal(blobs[0].data, old.params[name][0].data)
    print(f"{name}: {blobs[0].data.shape}, {'of the old net' if same else 'of its filler'}")

# Blob by blob: the new head starts from three classes of the old one.
new.params["parts"][0].data[...] = old.params["classes"][0].data[[1, 4, 7]]
new.params["parts"][1].data[...] = old.params["classes"][1].data[[1, 4, 7]]
x = np.random.RandomState(4).randn(4, 6)
print(
    "the same scores:",
    np.allclose(new.forward(data=x)["parts"], old.forward(data=x)["classes"][:, [1, 4, 7]]),
)

# By memory: a change in one net is a change in the other.
twin = caffe.Net("old.prototxt", caffe.TEST)
twin.share_with(old)
old.params["hidden"][0].data[...] = 0
print(
    "shared:", not twin.params["hidden"][0].data.any(), "- copied:", bool(new.params["hidden"][0].data.any())
)
