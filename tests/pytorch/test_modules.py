"""Low-bit layers: equal to float layers of the dequantised weights, and modules in every other way."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
from tiny_torch import close

from lowbit.formats import FORMATS

pytestmark = pytest.mark.torch


def layer(low_bit="sym_int4", dtype="float32", bias=True, k=100, rows=70, **settings):
    import torch

    from lowbit.torch import LowBitLinear

    torch.manual_seed(3)
    linear = torch.nn.Linear(k, rows, bias=bias).to(getattr(torch, dtype)).requires_grad_(False)
    return LowBitLinear.from_linear(linear, low_bit, **{"compute": "fp32", "threads": 1, **settings}), linear


@pytest.mark.parametrize("low_bit", FORMATS)
@pytest.mark.parametrize("group_size", [32, 64, -1])
def test_equals_the_float_layer_of_its_weights(low_bit, group_size):
    import torch

    ours, linear = layer(low_bit, group_size=group_size)
    assert ours.format.name == low_bit
    x = torch.randn(2, 5, 100)
    expected = torch.nn.functional.linear(x, ours.dequantize(), linear.bias)
    assert close(ours(x), expected) < 1e-5
    widest = 0.27 if "3" in low_bit else 0.17  # half of the widest gap between two codes: nf3, fp4
    assert close(ours.weight + 0, linear.weight) < widest


@pytest.mark.parametrize(("dtype", "tolerance"), [("bfloat16", 8e-3), ("float16", 1e-3), ("float64", 1e-5)])
def test_input_types(dtype, tolerance):
    import torch

    ours, linear = layer()
    x = torch.randn(7, 100).to(getattr(torch, dtype))
    y = ours(x)
    assert y.dtype == x.dtype
    assert close(y, torch.nn.functional.linear(x.float(), ours.dequantize(), linear.bias)) < tolerance


@pytest.mark.parametrize("shape", [(100,), (1, 100), (0, 100), (2, 3, 4, 100)])
def test_input_shapes(shape):
    import torch

    ours, _ = layer()
    assert ours(torch.randn(shape)).shape == (*shape[:-1], 70)
    transposed = torch.randn(100, 6).t()
    assert close(ours(transposed), ours(transposed.contiguous())) == 0


def test_autocast_gives_its_type():
    import torch

    ours, _ = layer()
    with torch.autocast("cpu", torch.bfloat16):
        assert ours(torch.randn(2, 100)).dtype == torch.bfloat16
    assert ours(torch.randn(2, 100)).dtype == torch.float32


def test_state_dict_pickle_and_copies():
    import torch

    from lowbit.torch import LowBitLinear

    ours, _ = layer("nf4")
    x = torch.randn(3, 100)
    fresh = LowBitLinear(100, 70, low_bit="nf4", compute="fp32", threads=1)
    assert not torch.equal(fresh(x), ours(x))
    fresh.load_state_dict(ours.state_dict())
    file = io.BytesIO()
    torch.save(ours.state_dict(), file)
    file.seek(0)
    assert torch.load(file, weights_only=True).keys() == {"packed", "exponent", "bias"}
    for other in (fresh, copy.deepcopy(ours), pickle.loads(pickle.dumps(ours))):
        assert torch.equal(other(x), ours(x))
    with pytest.raises(RuntimeError, match="size mismatch"):
        LowBitLinear(100, 70, low_bit="sym_int8").load_state_dict(ours.state_dict())


def test_weights_that_do_not_start_on_a_cache_line():
    """As safetensors' torch reader gives them, taken over with assign=True."""
    import torch

    ours, _ = layer("asym_int4")
    x = torch.randn(3, 100)
    expected, state = ours(x), ours.state_dict()
    shifted = torch.empty(state["packed"].numel() + 8, dtype=torch.uint8)[8:].reshape(state["packed"].shape)
    ours.load_state_dict({**state, "packed": shifted.copy_(state["packed"])}, assign=True)
    assert ours.packed.data_ptr() % 64
    assert torch.equal(ours(x), expected)
    assert torch.equal(torch.from_numpy(ours.packed_tensor().dequantize()), ours.dequantize())


def test_conversions_leave_the_packed_weight_alone():
    import torch

    ours, _ = layer()
    before = ours.dequantize()
    assert ours.to(torch.float16).bias.dtype == torch.float16
    assert (ours.weight.dtype, ours.packed.dtype) == (torch.float16, torch.uint8)
    assert torch.equal(ours.float().dequantize(), before)


@pytest.mark.filterwarnings("ignore")
def test_compiles_without_a_break():
    import torch

    ours, _ = layer()
    model = torch.nn.Sequential(ours, torch.nn.ReLU(), layer(k=70, rows=20)[0])
    x = torch.randn(3, 100)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    assert close(compiled(x), model(x)) < 1e-6
    assert torch.export.export(model, (x,)).module()(x).shape == (3, 20)
    product = torch.compile(
        lambda x: x @ ours.weight.t(), fullgraph=True, backend="aot_eager"
    )  # its values, in a graph
    assert close(product(x), x @ ours.dequantize().t()) < 1e-6


def test_operators_pass_torch_own_checks():
    import torch

    from lowbit.torch import kernels

    ours, _ = layer()
    arguments = (ours.format_id, ours.rows, ours.k, ours.group_size, ours.part, "fp32", "", 1)
    torch.library.opcheck(kernels.linear, (torch.randn(2, 100), ours.packed, ours.exponent, ours.bias, *arguments))
    torch.library.opcheck(kernels.dequantize, (ours.packed, ours.exponent, *arguments[:4], torch.bfloat16))


def test_training_and_gradients_are_refused():
    import torch

    ours, _ = layer()
    with torch.enable_grad(), pytest.raises(RuntimeError, match="no gradient"):
        ours(torch.randn(2, 100, requires_grad=True))
    assert ours(torch.randn(2, 100, requires_grad=True)).shape == (2, 70)  # without gradients it runs
    ours.train()
    with pytest.raises(RuntimeError, match=r"model\.eval\(\)"):
        ours(torch.randn(2, 100))


def test_weight_looks_like_a_float_weight_and_cannot_be_written():
    import torch

    ours, linear = layer("sym_int8", dtype="bfloat16")
    assert (ours.weight.shape, ours.weight.dtype, ours.weight.device) == (
        linear.weight.shape, linear.weight.dtype, linear.weight.device,
    )  # fmt: skip
    assert torch.equal(ours.weight.float(), ours.dequantize().float())
    with pytest.raises(RuntimeError, match="cannot be changed in place"):
        ours.weight.zero_()


def test_embedding():
    import torch

    from lowbit.torch import LowBitEmbedding

    table = torch.nn.Embedding(50, 40, padding_idx=0).requires_grad_(False)
    for low_bit, tolerance in (("fp32", 0), ("sym_int8", 0.01), ("nf4", 0.15)):
        ours = LowBitEmbedding.from_embedding(table, low_bit)
        ids = torch.tensor([[1, 49, 0], [7, 7, 3]], dtype=torch.int32)
        assert close(ours(ids), table(ids)) <= tolerance
        assert torch.equal(ours(ids), ours.dequantize()[ids.long()])
        assert ours.half()(ids).dtype == torch.float16
    for bad in (50, -1):
        with pytest.raises(IndexError, match="50 rows"):
            ours(torch.tensor([bad]))
