"""A batch of images classified by `caffe.Classifier`, by their centre and by ten crops of each.

Run it by `ilgnet caffe run examples/classify_batch.py`.
"""

import os
import tempfile

import caffe
import numpy as np
from caffe import layers as L
from caffe import params as P

COLOURS = ("red", "green", "blue")


def deploy():
    n = caffe.NetSpec()
    n.data = L.Input(shape=dict(dim=[10, 3, 20, 20]))
    n.pool = L.Pooling(n.data, pool=P.Pooling.AVE, global_pooling=True)
    n.score = L.InnerProduct(n.pool, num_output=3)
    n.prob = L.Softmax(n.score)
    return n.to_proto()


def write_net(folder):
    """Write a net that finds the strongest colour, with weights that are set by hand."""
    prototxt, caffemodel = os.path.join(folder, "deploy.prototxt"), os.path.join(folder, "net.caffemodel")
    with open(prototxt, "w") as file:
        file.write(str(deploy()))
    net = caffe.Net(prototxt, caffe.TEST)
    net.params["score"][0].data[...] = np.eye(3)[::-1] * 0.05  # the channels are BGR
    net.params["score"][1].data[...] = 0
    net.save(caffemodel)
    return prototxt, caffemodel


def image(corner, rest):
    """An image of one colour, with its upper left quarter in another."""
    pixels = np.empty((32, 32, 3), np.float32)
    pixels[:], pixels[:16, :16] = rest, corner
    return pixels


with tempfile.TemporaryDirectory() as folder:
    classifier = caffe.Classifier(
        *write_net(folder),
        image_dims=(24, 24),
        mean=np.array([104, 117, 123]),
        raw_scale=255,
        channel_swap=(2, 1, 0),
    )
images = [image((0.2, 0.2, 0.3), (0.6, 0.2, 0.1)), image((0.9, 0.1, 0.1), (0.2, 0.5, 0.4))]
for oversample in (False, True):
    print("ten crops:" if oversample else "centre:")
    for number, scores in enumerate(classifier.predict(images, oversample=oversample)):
        shown = ", ".join(f"{name} {score:.3f}" for name, score in zip(COLOURS, scores))
        print(f"  image {number}: {COLOURS[scores.argmax()]} ({shown})")
