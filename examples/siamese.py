"""A siamese net: two towers share their parameters by name, and learn a distance from pairs.

ilgnet caffe run examples/siamese.py
"""

import caffe
import numpy as np
from caffe import layers as L


def tower(points, name):
    """Two dense layers whose parameters have the same names in both towers."""

    def shared(layer):
        return [{"name": f"{layer}_w", "lr_mult": 1}, {"name": f"{layer}_b", "lr_mult": 2}]

    filler = {"type": "xavier"}
    hidden = L.InnerProduct(
        points, num_output=16, weight_filler=filler, param=shared("hidden"), name=f"hidden_{name}"
    )
    active = L.TanH(hidden, name=f"tanh_{name}")
    return L.InnerProduct(
        active, num_output=2, weight_filler=filler, param=shared("feature"), name=f"feature_{name}"
    )


net = caffe.NetSpec()
net.pairs, net.same = L.MemoryData(batch_size=50, channels=6, height=1, width=1, ntop=2)
net.left, net.right = L.Slice(net.pairs, ntop=2, axis=1)
net.one, net.other = tower(net.left, "left"), tower(net.right, "right")
net.loss = L.ContrastiveLoss(net.one, net.other, net.same, margin=1.0)
with open("siamese.prototxt", "w") as file:
    file.write(str(net.to_proto()))
with open("siamese_solver.prototxt", "w") as file:
    file.write(
        'net: "siamese.prototxt" base_lr: 0.05 momentum: 0.9 lr_policy: "fixed" max_iter: 400 random_seed: 8\n'
        "snapshot_after_train: false solver_mode: CPU\n"
    )

# Three kinds of points, one round each axis; half of the pairs are of the same kind.
random = np.random.RandomState(7)
kinds = random.randint(3, size=(500, 2))
kinds[::2, 1] = kinds[::2, 0]
points = np.eye(3)[kinds] + 0.1 * random.randn(500, 2, 3)
pairs = points.reshape(500, 6, 1, 1).astype(np.float32)
same = (kinds[:, 0] == kinds[:, 1]).astype(np.float32)

solver = caffe.SGDSolver("siamese_solver.prototxt")
solver.net.set_input_arrays(pairs, same)
left, right = solver.net.params["hidden_left"][0], solver.net.params["hidden_right"][0]
print("one memory:", np.shares_memory(left.data, right.data) and np.shares_memory(left.diff, right.diff))
solver.solve()

distances = []
for _ in range(10):
    solver.net.forward()
    features = solver.net.blobs["one"].data - solver.net.blobs["other"].data
    distances.extend(np.linalg.norm(features, axis=1))
distances = np.array(distances)
print("pairs of one kind are nearer than 0.5:", bool((distances[same == 1] < 0.5).all()))
print("pairs of two kinds are farther than 0.5:", bool((distances[same == 0] > 0.5).all()))
