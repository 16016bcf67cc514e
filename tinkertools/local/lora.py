"""A linear layer with an adapter in one step: W x + bias + scale · B (A x), and the gradients of x, A and B.

PEFT's own forward keeps and adds several tensors as wide as the layer's output; here the low side is multiplied first
and added in place, and all that is kept for the gradient is x, which layers that share it keep once.
"""

from typing import TYPE_CHECKING, Any

import torch

if TYPE_CHECKING:
    from peft import PeftModel


def install(model: "PeftModel") -> None:
    """Let the linear layers of a PEFT model compute in one step."""
    from peft.tuners.lora.layer import Linear

    for module in model.modules():
        if type(module) is Linear and type(module.base_layer) is torch.nn.Linear:
            module.forward = _Forward(module)  # type: ignore[method-assign]


class _Forward:
    """The forward of one of PEFT's linear layers."""

    def __init__(self, layer: Any) -> None:
        self._layer = layer
        self._plain = type(layer).forward

    def __call__(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        layer = self._layer
        active = [name for name in layer.active_adapters if name in layer.lora_A]
        if layer.disable_adapters or not active:
            found: torch.Tensor = layer.base_layer(x)
            return found
        if args or kwargs or len(active) > 1 or layer.merged or not is_plain(layer, active[0]):
            return self._plain(layer, x, *args, **kwargs)  # type: ignore[no-any-return]
        name, base = active[0], layer.base_layer
        a, b = layer.lora_A[name].weight, layer.lora_B[name].weight
        product: torch.Tensor = _Product.apply(  # type: ignore[no-untyped-call]
            x, base.weight, base.bias, a, b, layer.scaling[name]
        )
        return product


def is_plain(layer: Any, adapter: str) -> bool:
    """Whether an adapter of a PEFT layer is scale · B A and no more: no dropout, no bias, no variant such as DoRA."""
    return (
        adapter not in layer.lora_variant
        and isinstance(layer.lora_dropout[adapter], torch.nn.Identity)
        and layer.lora_B[adapter].bias is None
    )


class _Product(torch.autograd.Function):
    """W x + bias + scale · B (A x); the base's W and bias get no gradient."""

    @staticmethod
    def forward(
        ctx: Any,
        x: torch.Tensor,
        weight: torch.Tensor,
        bias: torch.Tensor | None,
        a: torch.Tensor,
        b: torch.Tensor,
        scale: float,
    ) -> torch.Tensor:
        x_N_I = x.reshape(-1, x.shape[-1])
        low_N_R = x_N_I @ a.to(x.dtype).T
        out_N_O = x_N_I @ weight.T if bias is None else torch.addmm(bias, x_N_I, weight.T)
        out_N_O.addmm_(low_N_R, b.to(x.dtype).T, alpha=scale)
        ctx.save_for_backward(x_N_I, low_N_R, weight, a, b)
        ctx.scale = scale
        return out_N_O.view(*x.shape[:-1], -1)

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        x_N_I, low_N_R, weight, a, b = ctx.saved_tensors
        of_out: torch.Tensor = gradients[0]
        of_out_N_O = of_out.reshape(-1, of_out.shape[-1])
        of_low_N_R = (of_out_N_O @ b.to(of_out.dtype)).mul_(ctx.scale)
        of_b = (of_out_N_O.T @ low_N_R).mul_(ctx.scale).to(b.dtype)
        of_a = (of_low_N_R.T @ x_N_I).to(a.dtype)
        of_x = None
        if ctx.needs_input_grad[0]:
            of_x = (of_out_N_O @ weight).addmm_(of_low_N_R, a.to(of_out.dtype)).view(*of_out.shape[:-1], -1)
        return of_x, None, None, of_a, of_b, None
