"""Products through oneDNN equal PyTorch's in values, gradients and shapes, on any CPU."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from trainers import matmul
from trainers.matmul import linear, product, uses_onednn

sizes = st.integers(1, 70)


@pytest.fixture(scope="module", autouse=True)
def on_amd() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(matmul, "ONEDNN_IS_FASTER", True)
        patch.setattr(matmul, "MIN_ONEDNN_FLOPS", 0)
        yield


def test_a_small_product_uses_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "MIN_ONEDNN_FLOPS", 2 * 5 * 24 * 40)
    assert uses_onednn(torch.ones(5, 24), torch.ones(40, 24))
    assert uses_onednn(torch.ones(5, 40), torch.ones(40, 24)), "the same product on its way back"
    assert not uses_onednn(torch.ones(4, 24), torch.ones(40, 24))


@given(N=sizes, I=sizes, O=sizes, transposed=st.tuples(st.booleans(), st.booleans()))
def test_product_of_any_strides(N: int, I: int, O: int, transposed: tuple[bool, bool]) -> None:  # noqa: E741
    generator = torch.Generator().manual_seed(N * 10_000 + I * 100 + O)

    def drawn(rows: int, columns: int, transpose: bool) -> torch.Tensor:
        shape = (columns, rows) if transpose else (rows, columns)
        matrix = torch.randn(shape, generator=generator)
        return matrix.T if transpose else matrix

    a_NI, b_OI = drawn(N, I, transposed[0]), drawn(O, I, transposed[1])
    assert uses_onednn(a_NI, b_OI)
    torch.testing.assert_close(product(a_NI, b_OI).double(), a_NI.double() @ b_OI.double().T, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("outputs", [10, 24, 40])
@pytest.mark.parametrize("shape", [(5, 24), (2, 3, 24), (2, 3, 4, 24)])
def test_linear_and_its_gradients(shape: tuple[int, ...], outputs: int, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    x, W_OI = torch.randn(shape, dtype=dtype), torch.randn(outputs, 24, dtype=dtype)
    weights = torch.randn(*shape[:-1], outputs, dtype=torch.float64)

    def run(function: object, dtype: torch.dtype) -> list[torch.Tensor]:
        inputs = [tensor.to(dtype).requires_grad_() for tensor in (x, W_OI)]
        out = function(*inputs)  # type: ignore[operator]
        return [out, *torch.autograd.grad((out * weights.to(dtype)).sum(), inputs)]

    for found, expected in zip(run(linear, dtype), run(F.linear, torch.float64), strict=True):
        assert found.shape == expected.shape
        assert found.is_contiguous()
        torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)


def test_other_cpus_use_pytorch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matmul, "ONEDNN_IS_FASTER", False)
    x, W_OI = torch.randn(5, 24), torch.randn(40, 24)
    assert not uses_onednn(x, W_OI)
    assert torch.equal(product(x, W_OI), x @ W_OI.T)


LINEAR_POINTWISE = "Tensor X, Tensor W, Tensor? B, str attr, Scalar?[] scalars, str? algorithm"


@pytest.mark.parametrize(
    ("version", "schema"),
    [
        ("missing", None),
        ("other_arguments", "(Tensor X, Tensor W) -> Tensor"),
        ("other_results", f"({LINEAR_POINTWISE}) -> Tensor[]"),
    ],
)
def test_an_operator_of_another_version_is_not_used(
    version: str, schema: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Replaces oneDNN's namespace by one without the operator, or with another schema of it."""
    assert matmul.is_supported(), "this PyTorch lacks it: products on AMD processors are those of MKL"
    library = torch.library.Library(f"oec_{version}", "DEF")
    if schema:
        library.define(f"_linear_pointwise{schema}")
        library.impl("_linear_pointwise", lambda *arguments: [arguments[0]], "CPU")
    monkeypatch.setattr(torch.ops, "mkldnn", getattr(torch.ops, f"oec_{version}"))
    assert not matmul.is_supported()


def test_autocast_uses_pytorch() -> None:
    x, W_OI = torch.randn(5, 24), torch.randn(40, 24)
    with torch.autocast("cpu", torch.bfloat16):
        assert not uses_onednn(x, W_OI)
        assert linear(x, W_OI).dtype == torch.bfloat16
