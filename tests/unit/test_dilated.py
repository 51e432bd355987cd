"""The fast convolution equals PyTorch's own, forward and backward."""

import pytest
import torch

from tomoline.kernels.dilated import cpu_convolve, to_subgrids
from tomoline.networks.blocks import plain_convolve


@pytest.mark.parametrize("dilation", [1, 2, 3, 5])
@pytest.mark.parametrize("shape", [(9, 8, 7), (12, 12, 12), (5, 11, 6)])
def test_outputs_and_gradients_are_equal(dilation, shape):
    torch.manual_seed(1)
    results = []
    x0, w0, b0 = torch.randn(2, 3, *shape), torch.randn(4, 3, 3, 3, 3), torch.randn(4)
    grad = torch.randn(2, 4, *shape)
    for convolve in (plain_convolve, cpu_convolve):
        x, w, b = (t.clone().requires_grad_() for t in (x0, w0, b0))
        y = convolve(x, w, b, dilation)
        y.backward(grad)
        results.append((y.detach(), x.grad, w.grad, b.grad))
    for plain, fast in zip(*results, strict=True):
        assert (plain - fast).norm() <= 1e-5 * plain.norm()


def test_low_precision_stays_within_a_hundredth():
    torch.manual_seed(2)
    x, w, b = torch.randn(1, 16, 12, 12, 12), torch.randn(16, 16, 3, 3, 3) / 20, torch.randn(16)
    plain = plain_convolve(x, w, b, 3)
    fast = cpu_convolve(x.bfloat16(), w, b, 3).float()
    assert (plain - fast).norm() <= 1e-2 * plain.norm()


def test_subgrids_hold_every_voxel_once():
    x = torch.arange(2 * 3 * 5 * 4 * 7.0).reshape(2, 3, 5, 4, 7)
    grids = to_subgrids(x, 2)
    assert grids.shape == (16, 3, 3, 2, 4)
    assert grids.sum() == x.sum()
    assert torch.equal(grids[0, :, :, :, :], x[0, :, ::2, ::2, ::2])
