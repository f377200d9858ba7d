"""shared in PyTorch, written by ilgnet_repro 0.1.0.

    from safetensors.torch import load_file

    with torch.device("meta"):
        net = Shared()
    net.load_state_dict(load_file("shared.weights.safetensors"), assign=True)
    net.requires_grad_(False)
"""

from torch import nn


class Shared(nn.Module):
    """From x (2x3) to a dict of "b" (2x3); the first axis is the batch."""

    def __init__(self):
        super().__init__()
        self.a = nn.Linear(3, 3, bias=False)
        self.b = nn.Linear(3, 3, bias=False)

    def forward(self, x):
        a = self.a(x)
        b = self.b(a)
        return {"b": b}
