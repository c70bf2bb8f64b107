"""Shared by all tests: one torch thread per worker, tiny tensors gain nothing from more."""

import torch

torch.set_num_threads(1)
