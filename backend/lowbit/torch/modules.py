"""LowBitLinear and LowBitEmbedding: what stands in a model where `nn.Linear`, `Conv1D` or `nn.Embedding` stood.

Own their packed bytes as buffers, so that state_dict, deepcopy, pickling and share_memory work as for any module.
For inference only: training mode and gradients are refused, because packed weights cannot be trained.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import nn
from torch.utils._pytree import tree_map

from lowbit.formats import BY_ID, Choice, Format, resolve
from lowbit.packed import PackedTensor
from lowbit.torch import kernels

FLOATS = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}


class PackedWeight(torch.Tensor):
    """What `module.weight` shows: shape, dtype and device of the float weight; its values only when they are used.

    Models read such attributes of a layer's weight (T5 casts to `wo.weight.dtype`), and some compute with it. Any
    operation gets the dequantised values; writing to it is refused.
    """

    _module: _Packed

    @staticmethod
    def __new__(cls, module: _Packed) -> PackedWeight:
        shape = (module.rows, module.k)
        return torch.Tensor._make_wrapper_subclass(cls, shape, dtype=module.dtype, device=module.packed.device)

    def __init__(self, module: _Packed) -> None:
        self._module = module

    def __repr__(self, **_: Any) -> str:  # type: ignore[override]
        return f"PackedWeight({self._module})"

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        if func._schema.is_mutable and args and isinstance(args[0], cls):
            raise RuntimeError(
                "packed weights cannot be changed in place; change the float model and call optimize_model afterwards"
            )

        def values(value: Any) -> Any:
            return value._module.dequantize() if isinstance(value, cls) else value

        return func(*tree_map(values, args), **tree_map(values, kwargs or {}))


class _Packed(nn.Module):
    """A packed weight [rows, k] as buffers: `packed`, uint8 [panels, panel bytes], and `exponent` of its multiplier."""

    packed: torch.Tensor
    exponent: torch.Tensor

    def __init__(
        self, rows: int, k: int, low_bit: str | Format | Choice, group_size: int | None, dtype: torch.dtype, device: Any
    ) -> None:
        super().__init__()
        choice = resolve(low_bit)
        self.rows, self.k = rows, k
        self.format_id = choice.format.id
        self.group_size = choice.format.group(choice.group_size if group_size is None else group_size)
        self.dtype = dtype  # of the float weight this stands for; follows .to(dtype), .half(), ...
        shape = kernels.panel_shape(self.format_id, rows, k, self.group_size)
        self.register_buffer("packed", torch.zeros(shape, dtype=torch.uint8, device=device))
        self.register_buffer("exponent", torch.zeros((), dtype=torch.int32, device=device))
        self.training = False

    @property
    def format(self) -> Format:
        """The number format of the weight."""
        return BY_ID[self.format_id]

    @property
    def weight(self) -> torch.Tensor:
        """The weight as a read-only tensor [rows, k] that is dequantised when its values are used."""
        if torch.compiler.is_compiling():  # no wrapper in a graph, which drops what it does not use
            return kernels.dequantize(*self._packed_arguments())
        return PackedWeight(self)

    def dequantize(self) -> torch.Tensor:
        """Returns the exact values of the weight, [rows, k] in the dtype of the weight it stands for."""
        return kernels.run_dequantize(*self._packed_arguments())

    def _packed_arguments(self) -> tuple[Any, ...]:
        return self.packed, self.exponent, self.format_id, self.rows, self.k, self.group_size, self.dtype

    def packed_tensor(self) -> PackedTensor:
        """Returns the weight as a `PackedTensor` over the same memory where it lies in one piece, else over a copy."""
        data = kernels.host_bytes(self.packed.detach().contiguous())
        return PackedTensor(self.format, self.group_size, (self.rows, self.k), 2.0 ** int(self.exponent), data)

    def _fill(self, packed: torch.Tensor, multiplier: float) -> None:
        """Takes packed bytes [panels, panel bytes], shared, not copied."""
        self.packed = packed
        self.exponent = torch.tensor(round(math.log2(multiplier)), dtype=torch.int32)

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)  # type: ignore[arg-type]
        name = f"{prefix}packed"  # as one would be that shares its memory with no other layer
        destination[name] = destination[name].reshape(-1, self.packed.shape[-1])

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        packed = state_dict.get(f"{prefix}packed")
        if packed is not None and packed.numel() == self.packed.numel():
            state_dict = {**state_dict, f"{prefix}packed": packed.reshape(self.packed.shape)}
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> Any:
        result = super()._apply(fn, recurse)
        with torch.no_grad():
            self.dtype = fn(torch.empty(0, dtype=self.dtype)).dtype
        return result

    def _refuse_training(self, x: torch.Tensor | None) -> None:
        if self.training:
            raise RuntimeError(
                f"{type(self).__name__} is for inference: packed weights cannot be trained. Call model.eval() first"
            )
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"{type(self).__name__} has no gradient: its input requires one. Run under torch.no_grad() or "
                "torch.inference_mode(), or train the float model and call optimize_model afterwards"
            )

    def extra_repr(self) -> str:
        group = f", group_size={self.group_size}" if self.group_size else ""
        return f"{self.k}, {self.rows}, {self.format.name}{group}"


def pack_tensor(packed: PackedTensor) -> torch.Tensor:
    """Returns the bytes of a packed tensor as [panels, panel bytes], over the same memory."""
    layout = packed.layout
    return kernels.to_tensor(packed.data).reshape(layout.panels, layout.panel_bytes)


class LowBitLinear(_Packed):
    """A linear layer with a packed weight: y = x W^T + bias, like `nn.Linear`, without training.

    Takes fp32, bf16, fp16 and fp64 inputs on the CPU and returns their dtype (under autocast, autocast's).
    compute: what activations are rounded to, "int8" (64 share a scale; formats of up to 5 bits and sym_int8), "bf16" or
    "fp32". tier, threads: as in `lowbit.Runtime`; "" and 0 leave them to the machine.

    >>> layer = LowBitLinear.from_linear(torch.nn.Linear(64, 32), "nf4")
    >>> layer(torch.ones(2, 64)).shape
    torch.Size([2, 32])
    """

    bias: nn.Parameter | None

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        low_bit: str | Format | Choice = "sym_int4",
        group_size: int | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
        compute: str = "int8",
        tier: str = "",
        threads: int = 0,
    ) -> None:
        super().__init__(out_features, in_features, low_bit, group_size, dtype, device)
        self.in_features, self.out_features = in_features, out_features
        self.part = kernels.WHOLE
        self.compute, self.tier, self.threads = compute, tier, threads
        zeros = torch.zeros(out_features, dtype=dtype, device=device) if bias else None
        self.bias = None if zeros is None else nn.Parameter(zeros, requires_grad=False)

    @classmethod
    def from_packed(
        cls,
        packed: PackedTensor,
        bias: torch.Tensor | None = None,
        *,
        dtype: torch.dtype = torch.float32,
        **settings: Any,
    ) -> LowBitLinear:
        """Returns a layer over the memory of a packed weight; settings: compute, tier, threads."""
        rows, k = packed.shape
        choice = Choice(packed.format, packed.group_size or None)
        group = packed.group_size if packed.group_size else -1
        layer = cls(k, rows, False, choice, group, dtype=dtype, device="meta", **settings)
        layer._fill(pack_tensor(packed), packed.multiplier)
        layer._take_bias(bias)
        return layer

    @classmethod
    def from_linear(
        cls,
        linear: nn.Module,
        low_bit: str | Format | Choice = "sym_int4",
        group_size: int | None = None,
        **settings: Any,
    ) -> LowBitLinear:
        """Returns a layer with the weight of an `nn.Linear` or of a Conv1D ([in_features, out_features]) quantised."""
        from lowbit.quantize import quantize

        weight, bias = linear.weight, linear.bias
        matrix = kernels.to_numpy(weight.t() if is_conv1d(linear) else weight)  # type: ignore[operator, arg-type]
        packed = quantize(matrix, low_bit, group_size, name=f"{type(linear).__name__}.weight")
        return cls.from_packed(packed, bias, dtype=weight.dtype, **settings)  # type: ignore[arg-type]

    def _take_bias(self, bias: torch.Tensor | None) -> None:
        self.bias = None if bias is None else nn.Parameter(bias.detach(), requires_grad=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Returns [..., out_features] for x [..., in_features]."""
        self._refuse_training(x)
        if torch.is_autocast_enabled("cpu") and x.dtype != torch.float64:
            x = x.to(torch.get_autocast_dtype("cpu"))
        run = kernels.linear if _is_traced(x) else kernels.run_linear
        return run(
            x, self.packed, self.exponent, self.bias, self.format_id, self.rows, self.k, self.group_size, self.part,
            self.compute, self.tier, self.threads,
        )  # fmt: skip

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, bias={self.bias is not None}, compute={self.compute}"


class LowBitEmbedding(_Packed):
    """An embedding table with packed rows: like `nn.Embedding`, without training. Returns its `dtype`."""

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        low_bit: str | Format | Choice = "sym_int8",
        group_size: int | None = None,
        *,
        padding_idx: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: Any = None,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, low_bit, group_size, dtype, device)
        self.num_embeddings, self.embedding_dim, self.padding_idx = num_embeddings, embedding_dim, padding_idx

    @classmethod
    def from_packed(
        cls, packed: PackedTensor, *, padding_idx: int | None = None, dtype: torch.dtype = torch.float32
    ) -> LowBitEmbedding:
        """Returns a table over the memory of a packed weight."""
        group = packed.group_size if packed.group_size else -1
        table = cls(*packed.shape, packed.format, group, padding_idx=padding_idx, dtype=dtype, device="meta")
        table._fill(pack_tensor(packed), packed.multiplier)
        return table

    @classmethod
    def from_embedding(
        cls, embedding: nn.Embedding, low_bit: str | Format | Choice = "sym_int8", group_size: int | None = None
    ) -> LowBitEmbedding:
        """Returns a table with the rows of an `nn.Embedding` quantised."""
        from lowbit.quantize import quantize

        packed = quantize(kernels.to_numpy(embedding.weight), low_bit, group_size, name="Embedding.weight")
        return cls.from_packed(packed, padding_idx=embedding.padding_idx, dtype=embedding.weight.dtype)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Returns [..., embedding_dim] for integer ids [...]; IndexError for an id that has no row."""
        self._refuse_training(None)
        run = kernels.embedding if _is_traced(ids) else kernels.run_embedding
        return run(
            ids, self.packed, self.exponent, self.format_id, self.rows, self.k, self.group_size, self.dtype
        )  # fmt: skip


def _is_traced(x: torch.Tensor) -> bool:
    """True where a graph is recorded or a tensor is no plain CPU tensor: then torch's dispatcher has to see the call.

    Otherwise the kernel is called directly: the dispatcher of custom operators costs more than a small product.
    """
    return torch.compiler.is_compiling() or type(x) not in (torch.Tensor, nn.Parameter) or x.device.type != "cpu"


def is_conv1d(module: nn.Module) -> bool:
    """Returns whether a module is transformers' Conv1D, a linear layer whose weight is [in_features, out_features]."""
    kind = type(module)
    return kind.__name__ == "Conv1D" and kind.__module__ == "transformers.pytorch_utils"
