"""Muon against its definition, and Adam for what is no kernel."""

import torch

from tomoline.training.optimisers import Muon, orthogonalised


def test_singular_values_become_about_one():
    torch.manual_seed(0)
    for shape in ((16, 432), (8, 8), (30, 5)):
        matrix = torch.randn(shape) * torch.logspace(0, -1, shape[1])
        values = torch.linalg.svdvals(orthogonalised(matrix))
        assert values.min() > 0.3
        assert values.max() < 1.3


def test_directions_are_kept():
    torch.manual_seed(1)
    u, _, v = torch.linalg.svd(torch.randn(6, 9), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(1, 2, 6)) @ v
    inner = u.T @ orthogonalised(matrix) @ v.T
    assert (inner - torch.diag(inner.diagonal())).abs().max() < 0.05


def test_vectors_move_as_adam_moves_them():
    torch.manual_seed(2)
    start, grads = torch.randn(5), torch.randn(4, 5)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    a, b = Muon([ours], lr=0.1), torch.optim.Adam([theirs], lr=0.1)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        a.step()
        b.step()
    torch.testing.assert_close(ours, theirs)


def test_kernels_move_by_the_same_amount_whatever_the_gradient():
    torch.manual_seed(3)
    moves = []
    for scale in (1.0, 1e-4):
        kernel = torch.nn.Parameter(torch.zeros(4, 3, 3, 3, 3))
        torch.manual_seed(4)
        kernel.grad = scale * torch.randn(4, 3, 3, 3, 3)
        Muon([kernel], lr=0.01).step()
        moves.append(kernel.detach().norm())
    torch.testing.assert_close(moves[0], moves[1], rtol=1e-3, atol=0)
