"""The probe's rows are those of the library's eager attention, and image tokens keep their places, in every family."""

from __future__ import annotations

import threading

import pytest
import torch
import transformers
from packaging.version import parse

from helpers import BINS, HEAD, INSTRUCTIONS
from la_reconvla.backbones import attention_probe
from la_reconvla.backbones.attention_probe import attention_rows, attention_weights, softcapped_attention
from la_reconvla.backbones.families import FAMILIES, architecture_of, family_of, open_model
from la_reconvla.contracts import Batch, PolicyInput
from la_reconvla.errors import UserError
from la_reconvla.method.actions import action_loss
from la_reconvla.method.objective import losses
from la_reconvla.method.policy import Policy
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.randomness import generator, seeded
from tiny_models import BUILDERS, LANGUAGE, MARKERS, SIZE, Given, backbone, random_model, tokenizer

CAUSAL = ["smolvlm", "idefics3", "llava", "llava_window", "qwen"]
GIVEN = Given()


def pictures(b: int = 3, seed: int = 0) -> torch.Tensor:
    return torch.randint(0, 256, (b, 3, SIZE, SIZE), dtype=torch.uint8, generator=generator(seed, "pictures"))


def language_of(wrapped):
    """The language model inside, whose attention implementation is set."""
    inner = wrapped.model
    return getattr(inner, "language_model", None) or inner.text_model


def added(masks):
    """What the library's eager attention adds to its logits."""
    if isinstance(masks, dict):
        return {kind: added(mask) for kind, mask in masks.items()}
    return (~masks).float() * torch.finfo(torch.float32).min


def eager(wrapped, *given, **asked):
    """The features, the probe's slices, and the library's eager attention on the very same embeddings."""
    language = language_of(wrapped)
    windowed = getattr(language.config, "sliding_window", None) is not None  # then the masks are made here
    called = wrapped.model if "PaliGemma" in type(wrapped.model).__name__ and not windowed else language
    calls = []
    hook = called.register_forward_pre_hook(lambda _m, _a, kwargs: calls.append(dict(kwargs)), with_kwargs=True)
    features = wrapped(PolicyInput(*given), **asked)
    hook.remove()
    kwargs, probe = calls[0], calls[0].pop("probe")
    if windowed:
        kwargs["attention_mask"] = added(kwargs["attention_mask"])
    implementation = language.config._attn_implementation
    language.set_attn_implementation("eager")
    out = called(**kwargs, output_attentions=True)
    language.set_attn_implementation(implementation)
    whole = torch.stack([out.attentions[layer] for layer in probe.layers], dim=1)
    return features, probe, whole, out.last_hidden_state


# ---------------------------------------------------------------- equal to eager attention


@pytest.mark.parametrize("asked", ["instruction", "actions"])
@pytest.mark.parametrize("name", LANGUAGE)
@torch.no_grad()
def test_rows_equal_eager_attention(name, asked):
    """Instructions of different lengths: padding stands in the middle of the sequence."""
    wrapped = backbone(name)
    features, probe, whole, states = eager(wrapped, pictures(), INSTRUCTIONS, attention=asked)
    expected = whole[:, :, :, probe.rows, probe.columns]
    assert features.attention.shape == expected.shape == (3, 3, 4, features.token_mask.shape[1], 16)
    counted = features.token_mask[:, None, None, :, None].expand_as(expected)
    assert (features.attention[counted] - expected[counted]).abs().max() < 1e-5
    assert expected[counted].max() > 0.1, "far from uniform, so that an error would show"
    assert (~features.token_mask).any() == (asked == "instruction"), "padding there was"
    torch.testing.assert_close(features.action_states, states[:, -2:], rtol=1e-4, atol=1e-4)


def test_rows_of_a_vision_tower_equal_eager_attention():
    wrapped, images, model = backbone("siglip"), pictures(), random_model("siglip")
    with torch.no_grad():
        features = wrapped(PolicyInput(images, INSTRUCTIONS), attention="instruction")
        model.set_attn_implementation("eager")
        pixels = images.float() / 127.5 - 1
        out = model(pixel_values=pixels, output_attentions=True)
    assert (features.attention - torch.stack(out.attentions[-3:], dim=1)).abs().max() < 1e-5
    assert features.attention.max() > 0.2
    torch.testing.assert_close(features.attention.sum(-1), torch.ones(3, 3, 4, 16))


def test_the_cap_and_the_window_of_gemma2_are_there_to_be_seen():
    """Without either the rows would be others, so that the equality above means something."""
    wrapped = backbone("paligemma2")
    with torch.no_grad():
        features, probe, _, _ = eager(wrapped, pictures(), INSTRUCTIONS, attention="actions")
        language = language_of(wrapped)
        assert language.config.layer_types[1:] == ["full_attention", "sliding_attention", "full_attention"]
        sliding = probe.weights[2]
        assert (sliding[:, :, 0] == 0).all(), "an action query looks 6 tokens back, the image is further away"
        assert (probe.weights[3][:, :, 0] > 0).all()
        for layer in language.layers:
            layer.self_attn.attn_logit_softcapping = 50.0
        other = wrapped(PolicyInput(pictures(), INSTRUCTIONS), attention="actions")
    assert (features.attention - other.attention).abs().max() > 0.01


@pytest.mark.parametrize("causal", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_softcapped_attention_and_its_gradient_equal_the_formula(monkeypatch, causal, masked):
    """In blocks of 3 queries; the reference is written out and has no block, no grouping and no checkpoint."""
    monkeypatch.setattr(attention_probe, "BLOCK", 3)
    draw = generator(0, "qkv")
    query, key, value = (torch.randn(2, heads, 7, 5, generator=draw, dtype=torch.float64) for heads in (4, 2, 2))
    for tensor in (query, key, value):
        tensor.requires_grad_()
    mask = None
    if masked:
        mask = torch.rand(2, 1, 7, 7, generator=draw) < 0.6
        mask[..., 0] = True
    out = softcapped_attention(query, key, value, mask, 0.7, 1.2, causal)
    logits = 1.2 * torch.tanh(torch.einsum("bhte,bhse->bhts", query, key.repeat_interleave(2, 1)) * 0.7 / 1.2)
    seen = mask if masked else torch.ones(7, 7).tril() > 0 if causal else torch.ones(7, 7) > 0
    weights = logits.masked_fill(~seen, -torch.inf).softmax(-1)
    expected = torch.einsum("bhts,bhse->bthe", weights, value.repeat_interleave(2, 1))
    torch.testing.assert_close(out, expected, rtol=1e-5, atol=1e-6)  # the softmax is in float32, as in the library
    grad = torch.randn(out.shape, generator=draw, dtype=out.dtype)
    found = torch.autograd.grad(out, (query, key, value), grad)
    torch.testing.assert_close(found, torch.autograd.grad(expected, (query, key, value), grad), rtol=1e-4, atol=1e-5)


def test_softcapped_attention_keeps_no_matrix():
    """What autograd keeps grows with the sequence, not with its square."""

    def kept(length: int) -> int:
        sizes = {}
        tensors = [torch.randn(1, 2, length, 8, requires_grad=True) for _ in range(3)]

        def pack(tensor):
            sizes[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            out = softcapped_attention(*tensors, None, 1.0, 5.0, True)
        assert out.requires_grad
        return sum(sizes.values())

    assert kept(512) < 3 * kept(256), "a matrix would grow fourfold"
    assert kept(512) < 512 * 512 * 4


def test_a_row_that_may_attend_to_nothing_is_uniform_and_never_nan():
    """As in the library's eager attention; such rows are padding and do not count."""
    draw = generator(0, "qk")
    query, key = (torch.randn(1, 2, 4, 3, generator=draw) for _ in range(2))
    mask = torch.ones(1, 1, 4, 4, dtype=torch.bool)
    mask[:, :, 2] = False
    found = attention_rows(query, key, mask, 1.0, slice(1, 4), slice(0, 4))
    torch.testing.assert_close(found[:, :, 1], torch.full((1, 2, 4), 0.25))
    additive = torch.zeros(1, 1, 4, 4).masked_fill(~mask, torch.finfo(torch.float32).min)
    torch.testing.assert_close(found, attention_weights(query[:, :, 1:], key, additive[:, :, 1:], 1.0))


# ---------------------------------------------------------------- checkpointing, threads, no state


def policy_of(wrapped) -> Policy:
    policy = Policy(wrapped, BINS)
    with seeded(0, "decoder"):
        policy.reconstruction_head = HEAD.build(wrapped.width, wrapped.grid, wrapped.patch_size)
    return policy.train()


def batch_of(b: int = 3) -> Batch:
    actions = torch.rand(b, 2, 7, generator=generator(0, "actions")) * 2 - 1
    return Batch(pictures(b), INSTRUCTIONS[:b], actions, torch.ones(b, 2, dtype=torch.bool))


@pytest.mark.filterwarnings("ignore:.gradient_checkpointing_enable. is deprecated", "ignore:None of the inputs")
@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("name", ["paligemma2", "smolvlm", "qwen", "mllama", "siglip"])
def test_checkpointing_changes_neither_rows_nor_gradients(name, reentrant):
    if name == "mllama" and reentrant:
        pytest.skip("the library hands the image on as a keyword, through which this kind passes no gradient")
    policy, batch = policy_of(backbone(name)), batch_of()
    plain = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    plain.total.backward()
    gradients = {n: p.grad.clone() for n, p in policy.named_parameters() if p.grad is not None}
    assert any("q_proj" in n and g.abs().max() > 0 for n, g in gradients.items())
    policy.zero_grad()

    policy.backbone.model.gradient_checkpointing_enable({"use_reentrant": reentrant})
    inner = policy.backbone.model
    passes, layer = [], (inner.encoder if name == "siglip" else language_of(policy.backbone)).layers[1]
    attention = getattr(layer, "self_attn", None) or layer.cross_attn
    hook = attention.register_forward_pre_hook(lambda *_: passes.append(1))
    saved = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    saved.total.backward()
    hook.remove()
    assert len(passes) == 2, "the layer was run again"
    assert torch.equal(saved.saliency, plain.saliency)
    again = {n: p.grad for n, p in policy.named_parameters() if p.grad is not None}
    assert again.keys() == gradients.keys()
    for n, gradient in gradients.items():
        torch.testing.assert_close(again[n], gradient, rtol=1e-4, atol=1e-6, msg=lambda m, n=n: f"{n}: {m}")


@pytest.mark.parametrize("name", ["paligemma2", "mllama", "siglip"])
def test_two_models_in_two_threads_do_not_disturb_each_other(name):
    wrapped, images = [backbone(name, seed=seed) for seed in (0, 1)], pictures()

    @torch.no_grad()
    def look(i: int) -> torch.Tensor:
        return wrapped[i](PolicyInput(images, INSTRUCTIONS), attention="instruction").attention

    alone, found = [look(0), look(1)], [[], []]
    assert not torch.equal(*alone)
    start = threading.Barrier(2)

    def run(i: int) -> None:
        start.wait()
        found[i] = [look(i) for _ in range(5)]

    threads = [threading.Thread(target=run, args=(i,)) for i in (0, 1)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for i in (0, 1):
        assert len(found[i]) == 5
        assert all(torch.equal(each, alone[i]) for each in found[i])


@pytest.mark.parametrize("name", BUILDERS)
@torch.no_grad()
def test_the_probe_leaves_nothing_behind(name):
    wrapped = backbone(name)
    before = {key: value for key, value in vars(wrapped.model).items() if not key.startswith("_")}
    wrapped(PolicyInput(pictures(), INSTRUCTIONS), attention="instruction")
    assert before == {key: value for key, value in vars(wrapped.model).items() if not key.startswith("_")}


# ---------------------------------------------------------------- family by family


@pytest.mark.parametrize("name", CAUSAL)
@torch.no_grad()
def test_a_causal_image_hears_only_what_stands_before_it(name):
    """Why the instruction stands on both sides: cut the first copy off, and the patches do not know the words."""
    wrapped = backbone(name)
    language, heard = language_of(wrapped), []

    def patches(text: str, cut: bool) -> torch.Tensor:
        def deafen(_module, _args, kwargs):
            before = kwargs["attention_mask"].clone()
            start = kwargs["probe"].columns.start - len(wrapped.markers(*wrapped.opening))
            before[:, :start] = 0
            return (), {**kwargs, "attention_mask": before}

        hook = language.register_forward_pre_hook(deafen, with_kwargs=True) if cut else None
        features = wrapped(PolicyInput(pictures(1), [text]), attention="instruction")
        if hook:
            hook.remove()
        heard.append(features.attention)
        return features.patches

    pair = "open the drawer", "close the drawer"
    with_both, without_first = ([patches(text, cut) for text in pair] for cut in (False, True))
    assert (with_both[0] - with_both[1]).abs().max() > 1e-3
    torch.testing.assert_close(*without_first, rtol=0, atol=1e-6)
    assert heard[2].sum() > 0, "the second copy sees the image all the same"


@pytest.mark.parametrize("name", [*CAUSAL, "mllama", "siglip"])
@torch.no_grad()
def test_image_tokens_stand_in_the_order_of_the_grid(name):
    """What changes most when one patch changes is its own token: merging and packing moved nothing."""
    wrapped, images = backbone(name), pictures(1)

    def tokens(image: torch.Tensor) -> torch.Tensor:
        pixels = wrapped.pixels(image, wrapped.geometry, None, torch.float32)
        if name == "mllama":
            return wrapped.see(pixels[:, None])[:, 0, 1:]
        seen = wrapped.see(pixels)
        return seen[0] if name == "siglip" else seen

    before, p = tokens(images), wrapped.patch_size
    for patch in range(16):
        row, column = divmod(patch, 4)
        other = images.clone()
        other[:, :, row * p : (row + 1) * p, column * p : (column + 1) * p] = 0
        moved = (tokens(other) - before).norm(dim=-1)[0]
        assert moved.argmax() == patch


@torch.no_grad()
def test_positions_of_qwen_are_the_librarys_own():
    """With padding before the image, two images, and text after them."""
    wrapped = backbone("qwen")
    present = torch.ones(2, 44, dtype=torch.bool)
    present[1, 3:6] = False
    places = [slice(6, 22), slice(23, 39)]
    kinds = torch.zeros(2, 44, dtype=torch.int)
    for place in places:
        kinds[:, place] = 1
    sizes = torch.tensor([[1, 8, 8]] * 4)  # before merging; two images a sample
    expected, _ = wrapped.model.get_rope_index(
        torch.full((2, 44), 7), kinds, image_grid_thw=sizes, attention_mask=present.long()
    )
    found = wrapped.positions(present, places)
    if parse(transformers.__version__) < parse("5.6"):  # multiplies the place of an image by its interval in time
        found, expected = found[1:], expected[1:]
    there = present.expand(len(found), -1, -1)
    assert torch.equal(found[there], expected[there])
    assert expected.max() < 44 - 16, "images take fewer positions than tokens"


@pytest.mark.parametrize("name", [*CAUSAL, "mllama"])
@torch.no_grad()
def test_special_tokens_stand_around_the_image_where_the_tokenizer_has_them(name):
    lengths = []
    for markers in (True, False):
        wrapped = backbone(name, markers=markers)
        hook = language_of(wrapped).register_forward_pre_hook(
            lambda _m, _a, kwargs: lengths.append(kwargs["inputs_embeds"].shape[1]), with_kwargs=True
        )
        wrapped(PolicyInput(pictures(1), INSTRUCTIONS[:1]))
        hook.remove()
    around = {"smolvlm": 3, "idefics3": 3, "qwen": 2, "mllama": 1}.get(name, 0)
    assert lengths[0] - lengths[1] == around


@pytest.mark.parametrize("name", BUILDERS)
def test_a_policy_of_every_family_trains_and_acts(name):
    policy, batch = policy_of(backbone(name)), batch_of()
    both = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    both.total.backward()
    assert (both.mask.sum(1) == 4).all()
    assert both.reconstruction > 0
    reached = [n for n, p in policy.backbone.named_parameters() if p.grad is not None and p.grad.abs().max() > 0]
    assert any("queries" in n for n in reached)
    assert sum("q_proj" in n or "qkv" in n for n in reached) >= 5, "towers and language model"
    assert policy.eval().act(batch.inputs).shape == (3, 2, 7)


@pytest.mark.parametrize("name", LANGUAGE)
def test_the_action_loss_reaches_every_row_that_the_saliency_reads(name):
    """A row that nothing downstream reads has a map that no loss shapes."""
    policy, batch = policy_of(backbone(name)), batch_of()
    layers, asked, probes = language_of(policy.backbone).layers, {}, []
    for index in policy.backbone.saliency_layers:
        attention = getattr(layers[index], "self_attn", None) or layers[index].cross_attn

        def keep(_module, _inputs, out, index=index):
            out.retain_grad()
            asked[index] = out

        attention.q_proj.register_forward_hook(keep)
        attention.register_forward_pre_hook(lambda _m, _a, kwargs: probes.append(kwargs["probe"]), with_kwargs=True)
    features = policy.features(batch, attention="instruction")
    logits = policy.action_head(features)
    action_loss(logits, policy.bins, batch.actions, batch.valid).backward()
    assert len(asked) == 3
    for index, queries in asked.items():
        felt = queries.grad[:, probes[0].rows].norm(dim=-1)
        assert (felt[features.token_mask] > 1e-9).all(), f"layer {index}"


# ---------------------------------------------------------------- from a folder


@pytest.mark.parametrize("name", ["paligemma2", "smolvlm", "qwen", "mllama", "siglip"])
def test_a_folder_opens_as_the_model_that_was_saved(tmp_path, name):
    model = random_model(name)
    model.save_pretrained(tmp_path)
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    family, found, words = open_model(str(tmp_path))
    assert family is FAMILIES[architecture_of(str(tmp_path)).model_type]
    assert type(found) is type(model)
    assert words.token_to_id(MARKERS[0]) is not None
    expected = model.state_dict()
    assert all(torch.equal(value, expected[key]) for key, value in found.state_dict().items())
    geometry = family.backbone.geometry_of(found.config)
    assert geometry.grid == ((56, 56) if name == "qwen" else (4, 4)), "Qwen takes any size, 448 px by default"


def test_a_folder_that_is_no_model_is_refused_in_a_sentence(tmp_path):
    with pytest.raises(UserError, match="no folder here and no repository on the hub"):
        open_model("./nowhere")
    with pytest.raises(UserError, match=r"has no config\.json"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text('{"model_type": "bert"}')
    with pytest.raises(UserError, match="unknown family of models 'bert'"):
        open_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(UserError, match=r"config\.json"):
        open_model(str(tmp_path))
    random_model("siglip").config.save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"has no tokenizer\.json"):
        open_model(str(tmp_path))
    tokenizer().save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UserError, match="cannot be loaded"):
        open_model(str(tmp_path))
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(UserError, match=r"tokenizer\.json"):
        open_model(str(tmp_path))
    with pytest.raises(UserError, match="unknown family"):
        family_of(type("Config", (), {"model_type": "paligema"})())
