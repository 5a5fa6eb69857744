"""The fast path of `Policy.act`: the same numbers, with nothing done twice.

`Policy.act` is the one to read. While an instruction stays, most of what it does stays too: tokens and their
embeddings, positions, rotary tables, the mask of who attends to whom. `Actor` records the tensor operations of one call
for each set of instructions and shapes, freezes the weights into the recording and folds all that does not depend on
pictures and robot state into constants. The rest runs without Python: on a CPU in the interpreter of TorchScript, on
a GPU compiled, as CUDA graphs. No code of the library is copied.

A recording is believed only where it gives what `Policy.act` gives, on two inputs; elsewhere `Policy.act` itself goes
on acting. So it does for families whose library code asks a tensor for its value on the way (all causal ones but
Mistral's, Mllama).
"""

from __future__ import annotations

import warnings
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import DynamicCache

from la_reconvla.backbones.pretrained import PretrainedBackbone
from la_reconvla.contracts import ACTION_DIM
from la_reconvla.method.autoregressive import TokenHead
from la_reconvla.method.policy import Policy

TOLERANCE = 1e-4  # largest difference to `Policy.act` in the environment's units
KEPT = 8  # recordings at once: what one process is told in turn


class Actor:
    """Acts as `policy` does, faster.

    Args:
        policy: in evaluation mode, on its device; its weights must not change any more.
        patience: so many passes of the language model for the same instructions and shapes come before the recording,
            which takes the time of some hundred of them and would not pay for fewer.
    """

    def __init__(self, policy: Policy, patience: int = 0):
        self.policy, self.patience = policy, patience
        self.passes = policy.head.chunk * ACTION_DIM if isinstance(policy.head, TokenHead) else 1
        self._known: OrderedDict[Any, Callable[..., Tensor] | int | None] = OrderedDict()

    @torch.inference_mode()
    def __call__(
        self,
        images: UInt8[Tensor, "b 3 H W"],
        instructions: list[str],
        wrist: UInt8[Tensor, "b 3 H W"] | None = None,
        proprio: Float[Tensor, "b p"] | None = None,
    ) -> Float[Tensor, "b c 7"]:
        """As `Policy.act`.

        Raises:
            UserError: as `Policy.act`.
        """
        given = {"images": images, "wrist": wrist, "proprio": proprio}
        inputs = {name: value for name, value in given.items() if value is not None}
        key = tuple(instructions), *((name, value.shape, value.dtype, value.device) for name, value in inputs.items())
        fast = self._known.pop(key, 0)
        if isinstance(fast, int) or fast is None:
            found = self.policy.act(images, instructions, wrist, proprio)
            if isinstance(fast, int):
                fast = fast + self.passes if fast < self.patience else self._record(instructions, inputs, found)
        else:
            found = fast(*inputs.values())
        self._known[key] = fast
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def records(self) -> int:
        """How many sets of instructions and shapes run fast now."""
        return sum(callable(fast) for fast in self._known.values())

    def _record(
        self, instructions: list[str], inputs: dict[str, Tensor], expected: Tensor
    ) -> Callable[..., Tensor] | None:
        """The recording, or None where there can be none or it gives something else."""
        examples = tuple(inputs.values())
        others = tuple(255 - x if x.dtype == torch.uint8 else x / 2 for x in examples)  # is anything of these baked in?
        try:
            kind = decoded if isinstance(self.policy.head, TokenHead) else whole
            fast = kind(self.policy, instructions, tuple(inputs), examples)
            for _ in range(2):  # the interpreter settles in its first calls
                fast(*examples)
            pairs = (
                (fast(*examples), expected),
                (fast(*others), self.policy.act(instructions=instructions, **dict(zip(inputs, others, strict=True)))),
            )
        except Exception:
            return None
        return fast if all(torch.allclose(found, true, rtol=0, atol=TOLERANCE) for found, true in pairs) else None


def whole(
    policy: Policy, instructions: list[str], names: tuple[str, ...], examples: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """Pictures and robot state -> actions, in one recording."""

    def act(*inputs: Tensor) -> Tensor:
        return policy.act(instructions=instructions, **dict(zip(names, inputs, strict=True)))

    return recorded(act, examples)


class Slots(DynamicCache):
    """Keys and values in places that are there from the start, so that no shape changes while tokens follow.

    Args:
        cache: keys [b g s e] of all layers, then values.
        at: int64 [1], the place of the token that comes.
    """

    def __init__(self, cache: tuple[Tensor, ...], at: Tensor):
        super().__init__()
        self.held, self.at = list(cache), at

    def update(self, key_states: Tensor, value_states: Tensor, layer_idx: int, *_: Any, **__: Any) -> Any:
        """All keys and values of a layer, the new ones in their place."""
        places = layer_idx, len(self.held) // 2 + layer_idx
        for place, state in zip(places, (key_states, value_states), strict=True):
            self.held[place] = self.held[place].index_copy(2, self.at, state)
        return tuple(self.held[place] for place in places)


def decoded(
    policy: Policy, instructions: list[str], names: tuple[str, ...], examples: tuple[Tensor, ...]
) -> Callable[..., Tensor]:
    """One recording of the prefix, and one of a token that follows, which is run again for each."""
    backbone: Any = policy.backbone
    head: Any = policy.head
    if isinstance(backbone, PretrainedBackbone):
        if backbone.compute is not None:
            raise NotImplementedError("a mixture of precisions")
        backbone = backbone.inner
    follows = head.chunk * ACTION_DIM - 1
    model = backbone.language
    width = getattr(model.config, "sliding_window", None)

    def start(*inputs: Tensor) -> tuple[Tensor, ...]:
        features, memory = backbone.begin(instructions=instructions, **dict(zip(names, inputs, strict=True)))
        token = head.next(features.actions[:, -1], features.instruction).argmax(-1)
        layers = memory.cache.layers
        if width is not None and layers[0].keys.shape[2] + follows > width:
            raise NotImplementedError("a window that is shorter than the sequence")
        states = [layer.keys for layer in layers] + [layer.values for layer in layers]
        present, at = memory.present.bool(), torch.tensor([memory.present.shape[1]], device=token.device)
        room = [nn.functional.pad(state, (0, 0, 0, follows)) for state in states]
        return token, features.instruction, at, nn.functional.pad(present, (0, follows)), memory.position, *room

    def follow(
        token: Tensor, instruction: Tensor, at: Tensor, present: Tensor, position: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        slots, position = Slots(cache, at), position + 1
        present = present | (torch.arange(present.shape[1], device=at.device) == at)
        out = model(
            inputs_embeds=head.embed(token)[:, None],
            attention_mask=present[:, None, None],
            position_ids=position,
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state[:, 0]
        return head.next(out, instruction).argmax(-1), instruction, at + 1, present, position, *slots.held

    first = recorded(start, examples)
    then = recorded(follow, first(*examples))

    def act(*inputs: Tensor) -> Tensor:
        state = first(*inputs)
        tokens = [state[0]]
        for _ in range(follows):
            state = then(*state)
            tokens.append(state[0])
        return policy.bins.values(torch.stack(tokens, dim=1).unflatten(1, (-1, ACTION_DIM)))

    return act


def recorded(function: Callable[..., Any], examples: tuple[Tensor, ...]) -> Callable[..., Any]:
    """What `graph_of` gives, as it runs fastest."""
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of TorchScript's age
        plain = tuple(example.clone() for example in examples)  # no inference tensors in the recording
        graph = graph_of(function, plain)
        if plain[0].is_cuda:  # never tried: no GPU was there
            return torch.compile(graph, mode="reduce-overhead")
        traced: Any = torch.jit.trace(graph, plain, check_trace=False)
        return torch.jit.freeze(traced)


def graph_of(function: Callable[..., Any], examples: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The tensor operations of `function` for these shapes, with its weights and constants inside."""
    return make_fx(function)(*examples).eval()
