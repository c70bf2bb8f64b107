"""Tokens that patch reduction has left go into the grid that the language model expects."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from earlytom.errors import ConfigError
from earlytom.method import Method
from earlytom.models.base import Adapter
from earlytom.ops.cells import centroids, distinct_cells, gather_rows, grid_coordinates
from earlytom.ops.select import mask_index
from earlytom.ops.tensors import check_finite, to_device
from earlytom.stages import PatchReduction, PatchState, TokenSelection
from earlytom.trace import note


def place_tokens(
    tokens: Tensor, state: PatchState, adapter: Adapter, method: Method
) -> TokenSelection:
    """Give every token of a video the cell nearest to its patches.

    Args:
        tokens: ``[T, m, dim]`` behind the projector.
        state: what they stand for. A grid of lower resolution is pooled first, unless the model
            did that in front of the projector.
        adapter: says where cells are.
        method: says which tokens stay.

    Raises:
        ConfigError: more tokens per frame than cells.
        VideoError: NaN or infinite features.
    """
    device = tokens.device
    state.size, state.owner = state.size.to(device), state.owner.to(device)
    check_finite(tokens)
    if state.grid != adapter.patch_grid and adapter.pooling > 1:
        pooled = _pooled(tokens, state.grid, adapter.pooling)
        state.apply(pooled)
        tokens = pooled.hidden
    (t, m), cells = tokens.shape[:2], adapter.tokens_per_frame
    if m > cells:
        raise ConfigError(
            f"{method.name} leaves {m} tokens per frame where the language model has {cells} "
            "places; reduce more"
        )
    order, cell = distinct_cells(_centres(state, adapter), *_cell_places(adapter, device))
    index = (torch.arange(t, device=device)[:, None] * cells + cell).flatten()
    values = gather_rows(tokens, order).flatten(0, 1)
    keep = method.final_patches(state.size, method.patch_budget(t, cells))
    note("placed", owner=state.owner, grid=state.grid, keep=keep, order=order, cell=cell)
    if keep is not None:
        stays = torch.zeros(t * m, dtype=torch.bool, device=device)
        stays[keep.to(device)] = True
        rows = mask_index(stays.view(t, m).gather(1, order), keep.numel())
        index, values = index.index_select(0, rows), values.index_select(0, rows)
    return TokenSelection(index, values)


def _pooled(x: Tensor, grid: tuple[int, int], side: int) -> PatchReduction:
    """Average blocks of ``side`` x ``side`` patches of ``[T, P, dim]``, or take averages as x."""
    row, column = (torch.arange(n, device=x.device) // side for n in grid)
    target = (row[:, None] * (grid[1] // side) + column).flatten().expand(x.shape[0], -1)
    if x.shape[1] == target.shape[1]:
        x = nn.functional.avg_pool2d(x.unflatten(1, grid).permute(0, 3, 1, 2), side)
        x = x.flatten(2).transpose(1, 2)
    return PatchReduction(x, target)


def _centres(state: PatchState, adapter: Adapter) -> Tensor:
    """Where every token stands ``[T, m, 2]``, in patches of full resolution."""
    device = state.owner.device
    centre = centroids(state.owner, state.n_tokens, grid_coordinates(state.grid, device))
    assert adapter.patch_grid is not None
    scale = [n / own for n, own in zip(adapter.patch_grid, state.grid, strict=True)]
    return (centre + 0.5) * to_device(scale, device, torch.float32) - 0.5


def _cell_places(adapter: Adapter, device: torch.device) -> tuple[Tensor, Tensor]:
    """Row and column coordinates of the cells, in patches: what the model's pooling says."""
    assert adapter.patch_grid is not None
    places = adapter.pool(grid_coordinates(adapter.patch_grid, device)[None])[0]
    places = places.unflatten(0, adapter.grid)
    return places[:, 0, 0].contiguous(), places[0, :, 1].contiguous()
