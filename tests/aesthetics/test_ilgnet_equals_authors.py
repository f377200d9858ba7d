"""Our nets and solvers against the authors' own text, where a copy of it exists.

Both sides are brought to modern form and then compared whole: names, types, bottoms, tops, learning
rates, fillers, layer fields, data and transform fields.  Two fields are compared to nothing: `source` and
`mean_file`, which say where somebody keeps the data.
"""

from __future__ import annotations

import pytest
from places import SHARED

from ilgnet_repro.aesthetics import ilgnet, resnet_inception, solvers
from ilgnet_repro.caffe.prototxt import read_net, read_solver
from ilgnet_repro.caffe.upgrade import upgrade_net, upgrade_solver

AUTHORS = SHARED / "ilgnet"
pytestmark = pytest.mark.skipif(
    not AUTHORS.is_dir(), reason=f"the authors' files carry no licence and are not shipped: no {AUTHORS}"
)

NETS = {
    "deploy": ("deploy.prototxt", ilgnet.deploy, 72),
    "train": ("train.prototxt", ilgnet.train, 72),
    "val": ("val.prototxt", ilgnet.val, 73),
    "resnet_inception": ("ILGNet_v4.prototxt", resnet_inception.train_val, 87),
}


def without_paths(net):
    for layer in net.layer:
        if layer.type == "Data":
            layer.data_param.ClearField("source")
            layer.transform_param.ClearField("mean_file")
    return net


@pytest.mark.parametrize("name", NETS)
def test_net_equals_the_authors(name):
    file, builder, layers = NETS[name]
    theirs, ours = (without_paths(upgrade_net(net)) for net in (read_net(AUTHORS / file), builder()))
    assert len(theirs.layer) == layers
    assert ours.name == theirs.name
    for mine, their in zip(ours.layer, theirs.layer, strict=True):
        assert str(mine) == str(their)
    assert ours.SerializeToString(deterministic=True) == theirs.SerializeToString(deterministic=True)


@pytest.mark.parametrize("name", NETS)
def test_our_nets_need_no_upgrade(name):
    """The comparison upgrades both sides; ours must not need it."""
    net = NETS[name][1]()
    assert upgrade_net(net) == net


@pytest.mark.parametrize(
    ("file", "builder"),
    [("AVA1_solver.prototxt", solvers.ava1), ("AVA2_solver.prototxt", solvers.ava2)],
    ids=["ava1", "ava2"],
)
def test_solver_equals_the_authors(file, builder):
    theirs = upgrade_solver(read_solver(AUTHORS / "solver" / file))
    assert str(builder()) == str(theirs)
    assert builder() == theirs


@pytest.mark.parametrize(
    "spoil",
    [
        lambda layer: layer.convolution_param.weight_filler.ClearField("type"),
        lambda layer: layer.param[1].ClearField("lr_mult"),
        lambda layer: layer.top.append("extra"),
    ],
    ids=["filler", "lr_mult", "top"],
)
def test_comparison_sees_a_changed_field(spoil):
    theirs, ours = upgrade_net(read_net(AUTHORS / "deploy.prototxt")), ilgnet.deploy()
    assert ours == theirs
    spoil(ours.layer[1])
    assert ours != theirs
