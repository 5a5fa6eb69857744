"""oneDNN's products in a recording: weights laid out for them once, and GELU as the last step of a product.

PyTorch gives products in single precision to MKL. On a processor that was not Intel's that took twice oneDNN's time for
large products (docs/log.md, 2026-11-29).
"""

from __future__ import annotations

from typing import Any

import torch

CONSTANTS = """
  %none : NoneType = prim::Constant()
  %no_form : str = prim::Constant[value=""]()
  %identity : str = prim::Constant[value="none"]()
  %gelu : str = prim::Constant[value="gelu"]()
  %channels_last : int = prim::Constant[value=2]()
  %scalars : Scalar?[] = prim::ListConstruct()"""
ONES = "%beta : int = prim::Constant[value=1]()\n  %alpha : int = prim::Constant[value=1]()"
PRODUCTS = (
    ("%x, %w, %bias", f"{ONES}\n  %y = aten::addmm(%bias, %x, %w, %beta, %alpha)", "view"),
    ("%x, %w", "%y = aten::mm(%x, %w)", "_unsafe_view"),
)
"""A linear layer with and without bias as it is recorded: what is given, the product, and the view that follows it."""


def rules() -> list[tuple[str, str]]:
    """Patterns in TorchScript's notation and what takes their place, the longer ones first."""
    found = []
    for gelu in (True, False):
        for given, product, view in PRODUCTS:
            bias, then = "%bias" if "%bias" in given else "%none", "%identity, %scalars, %no_form"
            before = after = "return (%y)"
            if gelu:
                given, then = f"{given}, %shape, %form", "%gelu, %scalars, %form"
                shaped = f"%z = aten::{view}(%y, %shape)"
                before, after = f"{shaped}\n  %a = aten::gelu(%z, %form)\n  return (%a)", f"{shaped}\n  return (%z)"
            new = f"""
  %t = aten::t(%w)
  %packed = mkldnn::_reorder_linear_weight(%t, %none)
  %y = mkldnn::_linear_pointwise(%x, %packed, {bias}, {then})"""
            found.append((f"graph({given}):\n  {product}\n  {before}", f"graph({given}):{CONSTANTS}{new}\n  {after}"))
    shape, then = "%stride, %padding, %dilation", "%groups, %identity, %scalars, %no_form"
    given = f"%x, %w, %bias, {shape}, %output, %groups, %c1, %c2, %c3, %c4"
    old = f"""
  %transposed : bool = prim::Constant[value=0]()
  %y = aten::_convolution(%x, %w, %bias, {shape}, %transposed, %output, %groups, %c1, %c2, %c3, %c4)
  return (%y)"""
    new = f"""
  %size : int[] = aten::size(%x)
  %packed = mkldnn::_reorder_convolution_weight(%w, %padding, %stride, %dilation, %groups, %size)
  %last = aten::contiguous(%x, %channels_last)
  %y = mkldnn::_convolution_pointwise(%last, %packed, %bias, %padding, %stride, %dilation, {then})
  return (%y)"""
    return [*found, (f"graph({given}):{old}", f"graph({given}):{CONSTANTS}{new}")]


def packed(traced: Any) -> Any:
    """The frozen recording of what `torch.jit.trace` gave; its linear layers and convolutions are oneDNN's."""
    for old, new in rules():
        torch._C._jit_pass_custom_pattern_based_rewrite_graph(old, new, traced.graph)
    torch._C._jit_pass_peephole(traced.graph, False)  # sizes become constants, before freezing forgets them
    frozen: Any = torch.jit.freeze(traced)
    for kind in ("linear", "convolution"):  # freezing cannot fold these: no constant of its own may have their layout
        reorder = getattr(torch.ops.mkldnn, f"_reorder_{kind}_weight")
        for node in frozen.graph.findAllNodes(f"mkldnn::_reorder_{kind}_weight"):
            weight, *how = (given.toIValue() for given in node.inputs())
            if weight is None:
                continue  # a product of two states
            constant = frozen.graph.create("prim::ConstantMKLDNNTensor", 1)
            constant.t_("value", reorder(weight, *how))
            constant.insertBefore(node)
            node.output().replaceAllUsesWith(constant.output())
            node.destroy()
    return frozen
