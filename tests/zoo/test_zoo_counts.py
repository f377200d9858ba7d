"""Parameter counts and blob shapes of the zoo against published figures, by an independent counter."""

from __future__ import annotations

import pytest
from zoo_counter import count, learned

from ilgnet_repro.zoo.catalogue import build

# Published counts.  BatchNorm's statistics are not counted, Scale's factors are.
PARAMETERS = {
    "googlenet": 6_998_552,
    "googlenet_train_val": 13_378_280,  # with the two side heads
    "alexnet": 60_965_224,
    "vgg16": 138_357_544,
    "vgg19": 143_667_240,
    "resnet50": 25_557_032 + 64,  # and the bias that the released Caffe net has in conv1
    "squeezenet": 1_235_496,
    "mobilenet": 4_231_976,
    "mobilenet_v2": 3_504_872 + 32 * 32 + 2 * 32,  # and the port's expansion in conv2_1
    "ssd300": 26_285_486,
    # VGG-16's convolutions, fc6 7×7 and fc7, three 1×1 scores, three fixed upsamplings
    "fcn8s": 14_714_688
    + (512 * 49 + 1) * 4096
    + (4096 + 1) * 4096
    + (4096 + 1 + 512 + 1 + 256 + 1) * 21
    + 21 * 21 * (16 + 16 + 256),
}

SHAPES = [
    ("googlenet", "pool5/7x7_s1", (10, 1024, 1, 1)),
    ("googlenet", "prob", (10, 1000)),
    ("googlenet_train_val", "loss2/ave_pool", (50, 528, 4, 4)),
    ("alexnet", "pool5", (10, 256, 6, 6)),
    ("vgg16", "pool5", (10, 512, 7, 7)),
    ("vgg19", "prob", (10, 1000)),
    ("resnet50", "res5c", (1, 2048, 7, 7)),
    ("squeezenet", "fire9/concat", (10, 512, 14, 14)),
    ("squeezenet", "prob", (10, 1000, 1, 1)),
    ("mobilenet", "conv6/sep/bn", (1, 1024, 7, 7)),
    ("mobilenet_v2", "conv6_3/linear/bn", (1, 320, 7, 7)),
    ("ssd300", "conv4_3_norm", (1, 512, 38, 38)),
    ("ssd300", "conv9_2", (1, 256, 1, 1)),
    ("ssd300", "mbox_priorbox", (1, 2, 4 * 8732)),  # the paper's 8732 boxes per class
    ("ssd300", "mbox_conf_softmax", (1, 8732, 21)),
    ("mobilenet_ssd", "mbox_priorbox", (1, 2, 4 * 1917)),
    ("fcn8s", "score", (1, 21, 500, 500)),
]


# Layer names of released weights: Caffe copies weights by layer name.
NAMES = {
    "alexnet": "conv1 norm1 pool1 conv5 fc6 drop7 fc8 prob",
    "vgg16": "conv1_1 relu1_1 conv5_3 pool5 fc6 relu6 drop6 fc8",
    "vgg19": "conv3_4 conv4_4 conv5_4 fc7",
    "resnet50": "bn_conv1 scale_conv1 res2a_branch1 bn2a_branch1 scale2a_branch2c res4f_branch2b fc1000",
    "squeezenet": "fire2/squeeze1x1 fire5/expand3x3 fire9/concat conv10 pool10",
    "mobilenet": "conv1/bn conv2_1/dw conv2_1/dw/scale conv5_6/sep relu6/sep fc7",
    "mobilenet_v2": "conv2_1/expand conv4_7/dwise/bn block_3_1 conv6_3/linear/scale conv6_4 fc7",
    "ssd300": "relu4_3 fc6 relu6 conv6_1_relu conv4_3_norm_mbox_conf_perm fc7_mbox_priorbox detection_out",
    "mobilenet_ssd": "conv0 conv1/dw/relu conv13 conv17_2 conv11_mbox_loc_flat mbox_conf_flatten",
    "fcn8s": "fc6 relu7 score_fr upscore2 score_pool4c fuse_pool3 upscore8 score",
    "googlenet": "conv1/relu_7x7 conv2/norm2 inception_4e/relu_pool_proj pool4/3x3_s2 loss3/classifier",
    "googlenet_train_val": "loss1/relu_conv loss2/drop_fc loss2/loss loss3/loss3 loss3/top-5",
}


@pytest.mark.parametrize("name", NAMES)
def test_layers_have_the_names_that_released_weights_use(name):
    assert set(NAMES[name].split()) <= {layer.name for layer in build(name).layer}


@pytest.mark.parametrize("name", PARAMETERS)
def test_parameters_are_as_published(name):
    assert learned(build(name)) == PARAMETERS[name]


@pytest.mark.parametrize(("name", "blob", "shape"), SHAPES, ids=[f"{s[0]}-{s[1]}" for s in SHAPES])
def test_blob_shape(name, blob, shape):
    assert count(build(name))[0][blob] == shape


def test_mobilenet_ssd_fills_its_released_file():
    """The released weights are 23,147,564 bytes; all but about 100 per layer are float32 parameters."""
    net = build("mobilenet_ssd")
    rest = 23_147_564 - 4 * learned(net)
    assert 0 < rest < 200 * len(net.layer)


HEADS = {
    "googlenet_train_val": {"loss1": 0.3, "loss2": 0.3, "loss3": 1},
}


@pytest.mark.parametrize("name", HEADS)
def test_losses_and_their_weights(name):
    losses = [layer for layer in build(name).layer if layer.type == "SoftmaxWithLoss"]
    found = {layer.name.split("/")[0]: layer.loss_weight[0] for layer in losses}
    assert found == pytest.approx(HEADS[name])
