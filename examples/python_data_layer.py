"""A Python data layer feeds training: points inside and outside a ring, drawn as they are needed.

ilgnet caffe run examples/python_data_layer.py
"""

import json

import caffe
import numpy as np
from caffe import layers as L


class Points(caffe.Layer):
    """Points of the plane and whether they lie in the ring; `param_str` holds the batch size and a seed."""

    def setup(self, bottom, top):
        settings = json.loads(self.param_str)
        self.batch, self.random = settings["batch"], np.random.RandomState(settings["seed"])

    def reshape(self, bottom, top):
        top[0].reshape(self.batch, 2)
        top[1].reshape(self.batch)

    def forward(self, bottom, top):
        points = self.random.uniform(-1, 1, (self.batch, 2))
        top[0].data[...] = points
        top[1].data[...] = abs(np.hypot(*points.T) - 0.6) < 0.25

    def backward(self, top, propagate_down, bottom):
        pass  # nothing comes before it


def write_files():
    """Write the net, whose data layer is the class above, and the solver."""
    net = caffe.NetSpec()
    settings = json.dumps({"batch": 100, "seed": 5})
    net.points, net.inside = L.Python(ntop=2, module="python_data_layer", layer="Points", param_str=settings)
    net.hidden = L.InnerProduct(net.points, num_output=40, weight_filler={"type": "gaussian", "std": 2})
    net.relu = L.ReLU(net.hidden, in_place=True)
    net.scores = L.InnerProduct(net.hidden, num_output=2, weight_filler={"type": "xavier"})
    net.loss = L.SoftmaxWithLoss(net.scores, net.inside)
    net.accuracy = L.Accuracy(net.scores, net.inside)
    with open("points.prototxt", "w") as file:
        file.write(str(net.to_proto()))
    with open("points_solver.prototxt", "w") as file:
        file.write(
            'net: "points.prototxt" type: "Adam" base_lr: 0.02 momentum: 0.9 momentum2: 0.999 lr_policy: "fixed"\n'
            "max_iter: 450 random_seed: 6 snapshot_after_train: false solver_mode: CPU\n"
        )


if __name__ == "__main__":
    write_files()
    caffe.set_random_seed(6)
    solver = caffe.get_solver("points_solver.prototxt")
    print("the data layer:", type(solver.net.layers[0]).__name__, list(solver.net.top_names["points"]))
    means = []
    for _ in range(3):
        losses = []
        for _ in range(150):
            solver.step(1)
            losses.append(float(solver.net.blobs["loss"].data))
        means.append(np.mean(losses))
    print(f"after {solver.iter} iterations, the loss falls: {means[0] > means[1] > means[2]}")
    right = np.mean([solver.net.forward()["accuracy"] for _ in range(20)])
    print(f"more than 0.85 of new points are right: {right > 0.85}")
