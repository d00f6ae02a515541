"""The logits ``h Eᵀ`` in the requested precision, chunk by chunk, and the gradients through them.

bfloat16 logits are what makes the baseline break at high learning rates, so their precision is explicit here and in
``trainers.head.compute_chunk``, and nowhere else.

Legend: C tokens of a chunk, V vocabulary with padding, D model width.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from trainers.matmul import product, uses_onednn, weight_grad

Precision = Literal["float32", "bfloat16"]


class Projection:
    """Computes logits and their gradients for at most ``C`` tokens at a time.

    float32: the products are computed in float32 (the dtype of E), even under autocast. bfloat16: the logits and their
    gradient are rounded to bfloat16; the operands are bfloat16 under autocast and float32 without it. In both cases
    the results, and the sum of E's gradient over the chunks, are float32.
    """

    def __init__(self, E_VD: Tensor, logits_dtype: Precision, bfloat16_operands: bool, C: int) -> None:
        V = E_VD.shape[0]
        self.E_VD = E_VD.to(torch.bfloat16) if bfloat16_operands else E_VD
        # All chunks share these buffers: mapping 100 MB of fresh memory takes a CPU longer than filling it.
        self.logits_CV = E_VD.new_empty(C, V)
        self.rounded_CV = E_VD.new_empty(C, V, dtype=torch.bfloat16) if logits_dtype == "bfloat16" else None

    def logits(self, h_CD: Tensor) -> Tensor:
        """Returns logits ``(C, V)`` in a buffer that the next call overwrites."""
        logits_CV = self.logits_CV[: len(h_CD)]
        if self.rounded_CV is not None and self.E_VD.dtype == torch.bfloat16:
            return logits_CV.copy_(torch.mm(h_CD.bfloat16(), self.E_VD.T, out=self.rounded_CV[: len(h_CD)]))
        h_CD = h_CD.type_as(self.E_VD)
        if uses_onednn(h_CD, self.E_VD):
            logits_CV = product(h_CD, self.E_VD)
        else:
            torch.mm(h_CD, self.E_VD.T, out=logits_CV)
        if self.rounded_CV is not None:
            logits_CV.copy_(self.rounded_CV[: len(h_CD)].copy_(logits_CV))
        return logits_CV

    def zero_gradient(self) -> Tensor:
        """Returns zeros ``(V, D)`` for ``backward`` to accumulate E's gradient in, in the layout of its products."""
        V, D = self.E_VD.shape
        zeros = self.logits_CV.new_zeros
        return zeros(D, V).T if uses_onednn(self.logits_CV, self.E_VD) else zeros(V, D)

    def backward(self, grad_CV: Tensor, h_CD: Tensor, grad_E_VD: Tensor) -> Tensor:
        """Returns the gradient of h, ``(C, D)``, and adds that of E to ``grad_E_VD``. May overwrite ``grad_CV``."""
        if self.rounded_CV is not None:
            rounded_CV = self.rounded_CV[: len(h_CD)].copy_(grad_CV)
            if self.E_VD.dtype == torch.bfloat16:
                grad_E_VD.add_(rounded_CV.T @ h_CD.bfloat16())
                return rounded_CV @ self.E_VD
            grad_CV.copy_(rounded_CV)
        h_CD = h_CD.type_as(grad_CV)
        if uses_onednn(grad_CV, self.E_VD):
            grad_E_VD.add_(weight_grad(grad_CV, h_CD))
        else:
            grad_E_VD.addmm_(grad_CV.T, h_CD)
        return product(grad_CV, self.E_VD.T)


def uses_bfloat16_operands(E_VD: Tensor, logits_dtype: Precision) -> bool:
    """Returns whether the products of the head have bfloat16 operands: for bfloat16 logits under autocast."""
    return logits_dtype == "bfloat16" and torch.is_autocast_enabled(E_VD.device.type)
