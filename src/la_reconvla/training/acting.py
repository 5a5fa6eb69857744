"""The fast path of `Policy.act`: the same numbers, with nothing done twice.

`Policy.act` is the one to read. While an instruction stays, most of what it does stays too: tokens and their
embeddings, positions, rotary tables, the mask of who attends to whom. `Actor` records the tensor operations of one call
for each set of instructions and shapes, freezes the weights into the recording and folds all that does not depend on
pictures and robot state into constants. The rest runs without Python: on a CPU in the interpreter of TorchScript, with
the products of `la_reconvla.training.packing`, on a GPU compiled, as CUDA graphs. No code of the library is copied.

A recording is believed only where it gives what `Policy.act` gives, on two inputs; else `Policy.act` itself goes
on acting. So it does for families whose library code asks a tensor for its value on the way (all causal ones but
Mistral's, Mllama).
"""

from __future__ import annotations

import contextlib
import math
import warnings
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.fx.experimental.proxy_tensor import make_fx
from transformers import DynamicCache

from la_reconvla.backbones.pretrained import PretrainedBackbone
from la_reconvla.backbones.windows import window_masks
from la_reconvla.contracts import PolicyInput
from la_reconvla.method.policy import Policy
from la_reconvla.method.variants.action_diffusion import DenoisingHead, unscaled
from la_reconvla.method.variants.autoregressive import TokenHead, bin_values
from la_reconvla.method.variants.budget import BudgetedPolicy
from la_reconvla.randomness import generator
from la_reconvla.training.packing import packed

TOLERANCE = 1e-4  # largest difference to `Policy.act` in the robot's units
KEPT = 8  # recordings at once


class Actor:
    """Acts as `policy` does, faster.

    Args:
        policy: in evaluation mode, on its device; its weights must not change any more.
        patience: so many passes of the language model for the same instructions and shapes come before the recording,
            which takes the time of some hundred of them and would not pay for fewer.
    """

    def __init__(self, policy: Policy, patience: int = 0):
        self.policy, self.patience = policy, patience
        self.passes = math.prod(policy.action_head.shape) if isinstance(policy.action_head, TokenHead) else 1
        self._known: OrderedDict[Any, Callable[..., Tensor] | int | None] = OrderedDict()

    @torch.inference_mode()
    def __call__(self, inputs: PolicyInput) -> Float[Tensor, "b c a"]:
        """As `Policy.act`.

        Raises:
            UserError: as `Policy.act`.
        """
        tensors = tensors_of(inputs)
        described = ((name, value.shape, value.dtype, value.device) for name, value in tensors.items())
        key = tuple(inputs.instructions), *described
        fast = self._known.pop(key, 0)
        if isinstance(fast, int) or fast is None:
            found = self.policy.act(inputs)
            if isinstance(fast, int):
                fast = fast + self.passes if fast < self.patience else self._record(inputs, found)
        else:
            found = fast(*tensors.values())
        self._known[key] = fast
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return found

    def records(self) -> int:
        """How many sets of instructions and shapes run fast now."""
        return sum(callable(fast) for fast in self._known.values())

    def _record(self, inputs: PolicyInput, expected: Tensor) -> Callable[..., Tensor] | None:
        """The recording, or None where there can be none or it gives something else."""
        examples = tuple(tensors_of(inputs).values())
        others = tuple(255 - x if x.dtype == torch.uint8 else x / 2 for x in examples)  # is anything of these baked in?
        try:
            fast = recording(self.policy, inputs)
            for _ in range(2):  # the interpreter settles in its first calls
                fast(*examples)
            pairs = (
                (fast(*examples), expected),
                (fast(*others), self.policy.act(with_tensors(inputs, others))),
            )
        except Exception:
            return None
        return fast if all(torch.allclose(found, true, rtol=0, atol=TOLERANCE) for found, true in pairs) else None


def tensors_of(inputs: PolicyInput) -> dict[str, Tensor]:
    """Pictures, robot state and noise, those that there are."""
    return {name: value for name, value in vars(inputs).items() if isinstance(value, Tensor)}


def with_noise(policy: Policy, inputs: PolicyInput, streams: Sequence[torch.Generator]) -> PolicyInput:
    """With noise for a policy that draws its actions, else as it is.

    Args:
        policy: what acts.
        inputs: of b samples.
        streams: b generators on the CPU; the samples draw in turn, so that several may have the same one.
    """
    head = policy.action_head
    if not isinstance(head, DenoisingHead):
        return inputs
    drawn = [torch.randn(head.shape, generator=stream) for stream in streams]
    return replace(inputs, noise=torch.stack(drawn).to(inputs.images.device))


def stream_of(seed: int, episode: str, number: int) -> torch.Generator:
    """The stream of the noise that a chunk begins with: all arms of a seed begin it with the same.

    Args:
        seed: of the policy.
        episode: its name, as the id of a start.
        number: of the chunk in the episode, or the step of a held-out frame.
    """
    return generator(seed, f"acting/{episode}", number)


class EpisodeNoise:
    """Noise for one chunk after the other of an episode; what acted before the episode plays no part in it.

    Args:
        seed: of the policy.

    Attributes:
        episode: its name.
    """

    def __init__(self, seed: int):
        self.seed = seed
        self.begin("")

    def begin(self, episode: str) -> None:
        """Another episode, or the same one again."""
        self.episode, self._chunks = episode, 0

    def __call__(self, policy: Policy, inputs: PolicyInput) -> PolicyInput:
        """See `with_noise`; the first of b samples gets the noise that it would get alone."""
        stream = stream_of(self.seed, self.episode, self._chunks)
        self._chunks += 1
        return with_noise(policy, inputs, [stream] * len(inputs.images))


def with_tensors(inputs: PolicyInput, tensors: tuple[Tensor, ...]) -> PolicyInput:
    """The same input with others in the place of `tensors_of`."""
    return replace(inputs, **dict(zip(tensors_of(inputs), tensors, strict=True)))


def recording(policy: Policy, inputs: PolicyInput) -> Callable[..., Tensor]:
    """`Policy.act` for these instructions and shapes: takes `tensors_of` other inputs."""
    if isinstance(policy.action_head, TokenHead):
        return decoded(policy, inputs)
    return denoised(policy, inputs) if isinstance(policy.action_head, DenoisingHead) else in_one_pass(policy, inputs)


def in_one_pass(policy: Policy, inputs: PolicyInput) -> Callable[..., Tensor]:
    """Pictures and robot state -> actions, in one recording."""

    def act(*tensors: Tensor) -> Tensor:
        return policy.act(with_tensors(inputs, tensors))

    return recorded(act, tuple(tensors_of(inputs).values()))


def denoised(policy: Policy, inputs: PolicyInput) -> Callable[..., Tensor]:
    """One recording of what the network is conditioned on, and one of the network, which is run again for each step."""
    head: Any = policy.action_head
    see: Any = policy.see if isinstance(policy, BudgetedPolicy) else policy.backbone
    examples: dict[str, Tensor] = tensors_of(inputs)

    def start(*tensors: Tensor) -> Tensor:
        return head.states(see(with_tensors(inputs, tensors)))

    first = recorded(start, tuple(examples.values()))
    states = first(*examples.values())
    x = examples["noise"] if "noise" in examples else head.still.repeat(len(states), 1, 1)
    level = torch.zeros(len(states), device=states.device)
    predict = recorded(lambda *given: head.predict(*given), (x, level, states), few_rows=True)

    def act(*tensors: Tensor) -> Tensor:
        states, noise = first(*tensors), dict(zip(examples, tensors, strict=True)).get("noise", x)
        return unscaled(policy.bins, head.drawn(lambda x, level: predict(x, level, states), noise))

    return act


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


def decoded(policy: Policy, inputs: PolicyInput) -> Callable[..., Tensor]:
    """One recording of the prefix, and one of a token that follows, which is run again for each."""
    backbone: Any = policy.backbone
    action_head: Any = policy.action_head
    if isinstance(backbone, PretrainedBackbone):
        if backbone.compute is not None:
            raise NotImplementedError("a mixture of precisions")
        backbone = backbone.inner
    follows = math.prod(action_head.shape) - 1
    model = backbone.language

    def start(*tensors: Tensor) -> tuple[Tensor, ...]:
        features, memory = backbone.begin(with_tensors(inputs, tensors))
        token = action_head.next(features.action_states[:, -1], features.instruction_state).argmax(-1)
        layers = memory.cache.layers
        states = [layer.keys for layer in layers] + [layer.values for layer in layers]
        present, at = memory.present.bool(), torch.tensor([memory.present.shape[1]], device=token.device)
        room = [nn.functional.pad(state, (0, 0, 0, follows)) for state in states]
        return token, features.instruction_state, at, nn.functional.pad(present, (0, follows)), memory.position, *room

    def follow(
        token: Tensor, instruction: Tensor, at: Tensor, present: Tensor, position: Tensor, *cache: Tensor
    ) -> tuple[Tensor, ...]:
        slots, position = Slots(cache, at), position + 1
        present = present | (torch.arange(present.shape[1], device=at.device) == at)
        masks = window_masks(model.config, present, 1)
        out = model(
            inputs_embeds=action_head.embed(token)[:, None],
            attention_mask=present[:, None, None] if masks is None else masks,
            position_ids=position,
            past_key_values=slots,
            use_cache=True,
        ).last_hidden_state[:, 0]
        return action_head.next(out, instruction).argmax(-1), instruction, at + 1, present, position, *slots.held

    examples = tuple(tensors_of(inputs).values())
    first = recorded(start, examples)
    then = recorded(follow, first(*examples), few_rows=True)

    def act(*tensors: Tensor) -> Tensor:
        state = first(*tensors)
        tokens = [state[0]]
        for _ in range(follows):
            state = then(*state)
            tokens.append(state[0])
        return bin_values(policy.bins, torch.stack(tokens, dim=1).unflatten(1, action_head.shape))

    return act


def recorded(
    function: Callable[..., Any], examples: tuple[Tensor, ...], *, few_rows: bool = False
) -> Callable[..., Any]:
    """What `graph_of` gives, as it runs fastest.

    Args:
        function: of tensors.
        examples: what it is given, of the shapes to come.
        few_rows: its products are of some rows each. oneDNN then takes longer to call than it gains.
    """
    with warnings.catch_warnings(), torch.inference_mode(False), torch.no_grad():
        warnings.simplefilter("ignore")  # of TorchScript's age
        plain = tuple(example.clone() for example in examples)  # no inference tensors in the recording
        graph = graph_of(function, plain)
        if plain[0].is_cuda:  # never tried: no GPU was there
            return torch.compile(graph, mode="reduce-overhead")

        def traced() -> Any:
            return torch.jit.trace(graph, plain, check_trace=False)

        single = {p.dtype for p in graph.parameters()} == {torch.float32}
        if single and not few_rows and torch.backends.mkldnn.is_available():
            with contextlib.suppress(Exception):  # what oneDNN does not do, a convolution of videos among it
                fast = packed(traced())
                fast(*plain)
                return fast
        return torch.jit.freeze(traced())


def graph_of(function: Callable[..., Any], examples: tuple[Tensor, ...]) -> torch.fx.GraphModule:
    """The tensor operations of `function` for these shapes, with its weights and constants inside."""
    return make_fx(function)(*examples).eval()
