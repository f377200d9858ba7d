"""An application of OpenCV's Caffe reader, with one import changed: `cv2.dnn` is `ilgnet_repro.cvdnn`.

The steps are those of the face detectors that everyone copies.  The net is a single-shot detector of one map; its weights
are set by hand, so that what it finds are bright squares.  Run it by `python examples/face_detector.py`.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))  # from a checkout, without installing

import cv2
import numpy as np

from ilgnet_repro import cvdnn as dnn  # instead of: from cv2 import dnn
from ilgnet_repro.pycaffe import NetSpec
from ilgnet_repro.pycaffe import layers as L
from ilgnet_repro.pycaffe import params as P

SIZE, STEP, BOX = 96, 8, 24


def files():
    """Return the net and its weights, as the bytes of a prototxt and of a caffemodel."""
    n = NetSpec()
    n.data = L.Input(shape=dict(dim=[1, 3, SIZE, SIZE]))
    n.mean = L.Convolution(n.data, num_output=1, kernel_size=BOX, stride=STEP, pad=BOX // 2 - STEP // 2)
    # Two scores for each place: background and face; and four offsets of its box, which are all 0.
    n.scores = L.Convolution(n.mean, num_output=2, kernel_size=1)
    n.offsets = L.Convolution(n.mean, num_output=4, kernel_size=1, bias_term=False)
    n.prior = L.PriorBox(n.mean, n.data, min_size=BOX, step=STEP, clip=True, variance=[0.1, 0.1, 0.2, 0.2])
    for name in ("scores", "offsets"):
        n[f"{name}_perm"] = L.Permute(n[name], order=[0, 2, 3, 1])
        n[f"{name}_flat"] = L.Flatten(n[f"{name}_perm"])
    n.by_box = L.Reshape(n.scores_flat, shape=dict(dim=[0, -1, 2]))
    n.prob = L.Softmax(n.by_box, axis=2)
    n.prob_flat = L.Flatten(n.prob)
    n.detection_out = L.DetectionOutput(
        n.offsets_flat, n.prob_flat, n.prior, num_classes=2, share_location=True, background_label_id=0,
        nms_param=dict(nms_threshold=0.3, top_k=400), code_type=P.PriorBox.CENTER_SIZE, keep_top_k=20,
        confidence_threshold=0.01,
    )  # fmt: skip
    net = n.to_proto()
    weights = {
        "mean": [np.full((1, 3, BOX, BOX), 1 / (3 * BOX * BOX)), np.zeros(1)],
        "scores": [np.array([-0.2, 0.2]).reshape(2, 1, 1, 1), np.array([10, -10])],
        "offsets": [np.zeros((4, 1, 1, 1))],
    }
    text = str(net).encode()
    for layer in net.layer:
        for blob in weights.get(layer.name, ()):
            layer.blobs.add(data=blob.ravel()).shape.dim.extend(blob.shape)
    return text, net.SerializeToString()


image = np.full((120, 160, 3), 90, np.uint8)  # as cv2.imread returns it
cv2.rectangle(image, (20, 30), (59, 59), (250, 240, 230), -1)
cv2.rectangle(image, (100, 60), (139, 89), (235, 245, 255), -1)

net = dnn.readNetFromCaffe(*files())
(height, width) = image.shape[:2]
blob = dnn.blobFromImage(cv2.resize(image, (SIZE, SIZE)), 1.0, (SIZE, SIZE), (104.0, 177.0, 123.0))
net.setInput(blob)
detections = net.forward()

print("rows:", detections.shape)
for i in range(detections.shape[2]):
    confidence = detections[0, 0, i, 2]
    if confidence < 0.5:
        continue
    box = detections[0, 0, i, 3:7] * np.array([width, height, width, height])
    print(f"face: {confidence:.3f} at {box.astype(int).tolist()}")

model = dnn.DetectionModel(net)
model.setInputParams(1.0, (SIZE, SIZE), (104.0, 177.0, 123.0))
classes, confidences, boxes = model.detect(image, confThreshold=0.5)
print("DetectionModel:", [[int(side) for side in box] for box in boxes])
