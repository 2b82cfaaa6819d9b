"""Low-bit PyTorch models on the native kernels (extra `torch`): modules, optimize_model, saving and loading."""

from __future__ import annotations

try:
    import torch
except ImportError as error:
    raise ImportError('this needs PyTorch 2.4 or newer; install it with: pip install "lowbit[torch]"') from error
if not hasattr(torch.library, "custom_op"):
    raise ImportError(f'this needs PyTorch 2.4 or newer, found {torch.__version__}: pip install -U "lowbit[torch]"')

from lowbit.torch.folder import load_low_bit, low_memory_init
from lowbit.torch.modules import LowBitEmbedding, LowBitLinear
from lowbit.torch.optimize import optimize_model

__all__ = ["LowBitEmbedding", "LowBitLinear", "load_low_bit", "low_memory_init", "optimize_model"]
