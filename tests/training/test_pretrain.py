"""Pretraining on captions: what its losses are made of, and that a killed run goes on at the same bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from test_captions import scenes_of

from helpers import TINY
from la_reconvla.analysis import attention_overlap as grounding
from la_reconvla.contracts import PolicyInput
from la_reconvla.data.captions import FALSE, TRUE, UNSURE, Caption, Captioner, Expression
from la_reconvla.errors import UserError
from la_reconvla.randomness import generator
from la_reconvla.storage import read_jsonl
from la_reconvla.study import words
from la_reconvla.training import pretraining_objectives as module
from la_reconvla.training.pretraining import WEIGHTS, PretrainConfig, caption_batch, pretrain
from la_reconvla.training.pretraining_objectives import CaptionBatch, Captioning, Contrast, MaskedWords, pair_logits
from la_reconvla.training.run_state import STATE
from la_reconvla.training.tensors import load_tensors

TEXTS = ["pick up the black bowl", "the ramekin", "a plate next to the bowl"]


def captions(seed: int = 0) -> CaptionBatch:
    images = torch.randint(0, 256, (3, 3, TINY.image_size, TINY.image_size), generator=generator(seed, "images")).byte()
    sentences = [Caption(text, Expression("plate")) for text in TEXTS]
    truth = torch.tensor([[TRUE, FALSE, TRUE], [FALSE, TRUE, UNSURE], [FALSE, FALSE, TRUE]])
    return CaptionBatch(images, sentences, truth)


def test_pair_logits_of_a_picture_s_own_sentence_are_those_of_eager_attention():
    """log softmax differs from its logits by one number a row, so differences between patches must agree."""
    backbone = TINY.build().double()
    batch = captions()
    ours = pair_logits(backbone, batch.images, batch.texts)
    tokens = backbone.encode(batch.texts)
    patches = backbone.images(batch.images, None)
    n = patches.shape[1]
    present = torch.cat([torch.ones(3, n, dtype=torch.long), tokens.present.long()], 1)
    backbone.model.language_model.set_attn_implementation("eager")
    out = backbone.model(
        inputs_embeds=torch.cat([patches, backbone.model.get_input_embeddings()(tokens.ids)], 1),
        attention_mask=present,
        position_ids=present.cumsum(1),
        token_type_ids=torch.zeros_like(present),
        output_attentions=True,
        use_cache=False,
    )
    for index, layer in enumerate(backbone.saliency_layers):
        logs = out.attentions[layer][:, :, n:, :n].log().mean(1)  # [b t n]
        for i in range(3):
            reference = logs[i][tokens.token_mask[i]].mean(0)
            mine = ours[index, i, i]
            torch.testing.assert_close(mine - mine[0], reference - reference[0], rtol=1e-5, atol=1e-6)


def test_pair_logits_leave_the_model_as_it_was():
    backbone = TINY.build()
    before = backbone.model.language_model.config._attn_implementation
    pair_logits(backbone, captions().images, TEXTS)
    assert backbone.model.language_model.config._attn_implementation == before
    features = backbone(PolicyInput(captions().images, TEXTS), attention="instruction")
    assert features.attention is not None


def test_a_sentence_is_compared_with_every_picture_by_its_best_patch(monkeypatch):
    """Against numpy, on drawn logits."""
    maps = 0.1 * torch.randn(2, 3, 3, 5, generator=generator(0, "maps"))
    orders = set()

    def drawn(_, images, texts):
        order = [TEXTS.index(text) for text in texts]
        orders.add(tuple(order))
        return maps[:, order]

    monkeypatch.setattr(module, "pair_logits", drawn)
    batch = captions()

    def entropy(scores):
        p = 1 / (1 + np.exp(-(5 * scores.max(-1) - 2.0)))
        truth = batch.truth.numpy()
        return 0.5 * (-np.log(p[truth == 1]).mean() - np.log(1 - p[truth == 0]).mean())

    layers = [entropy(layer) for layer in maps.numpy()]
    expected = entropy(maps.numpy().mean(0)) + 0.5 * np.mean(layers)
    for seed in range(8):
        loss = Contrast(each_layer=0.5).loss(TINY.build(), module.Biases(2), batch, generator(seed, "x"))
        assert loss.item() == pytest.approx(expected, rel=1e-5)
    assert len(orders) > 2  # sentences and pictures pass in random pairs, and each keeps its truth


def test_unsure_pairs_change_nothing(monkeypatch):
    maps = torch.randn(2, 3, 3, 5, generator=generator(0, "maps"))
    monkeypatch.setattr(module, "pair_logits", lambda _, images, texts: maps[:, [TEXTS.index(text) for text in texts]])
    batch, head = captions(), module.Biases(2)
    loss = Contrast().loss(TINY.build(), head, batch, generator(0, "x"))
    maps[:, 1, 2] += 3.0
    torch.testing.assert_close(Contrast().loss(TINY.build(), head, batch, generator(0, "x")), loss)
    maps[:, 1, 0] += 3.0
    assert not torch.isclose(Contrast().loss(TINY.build(), head, batch, generator(0, "x")), loss)


@pytest.mark.parametrize("objective", [Contrast(), Captioning(), MaskedWords()], ids=lambda o: o.label)
def test_every_objective_reaches_the_logits_of_the_text_rows(objective):
    """The attention that the saliency reads gets a gradient from each; of a last layer that nothing reads, none can."""
    backbone = TINY.build()
    head = objective.word_head(backbone)
    objective.loss(backbone, head, captions(), generator(0, "cover")).backward()
    for layer in backbone.saliency_layers:
        attention = backbone.model.language_model.layers[layer].self_attn
        for projection in (attention.q_proj, attention.k_proj):
            assert projection.weight.grad is not None
            assert float(projection.weight.grad.abs().max()) > 0


def test_captioning_cannot_see_the_word_that_it_predicts():
    """Changing a later word changes no earlier prediction."""
    backbone = TINY.build()
    images = captions().images[:1]
    one, two = (backbone.encode([text]) for text in ("the black bowl", "the black plate"))
    states = [module.text_states(backbone, images, tokens.ids, tokens.present, causal=True)[0] for tokens in (one, two)]
    changed = int((one.ids != two.ids)[0].nonzero()[0])
    torch.testing.assert_close(states[0][:changed], states[1][:changed])
    assert not torch.allclose(states[0][changed], states[1][changed])


def test_masked_words_cover_at_least_one_word_and_no_false_caption():
    objective, backbone, batch = MaskedWords(share=1e-9), TINY.build(), captions()
    seen = {}
    encode = backbone.encode

    def spy(texts):
        seen["rows"] = encode(texts).token_mask
        return encode(texts)

    backbone.encode = spy
    head = objective.word_head(backbone)
    counted = []
    head.register_forward_pre_hook(lambda _, inputs: counted.append(len(inputs[0])))
    objective.loss(backbone, head, batch, generator(0, "cover"))
    assert counted == [1]
    counted.clear()
    MaskedWords(share=1.0).loss(backbone, head, batch, generator(0, "cover"))
    assert counted == [int(seen["rows"].sum())]  # all own captions are true here
    batch.truth[0, 0] = FALSE
    counted.clear()
    MaskedWords(share=1.0).loss(backbone, head, batch, generator(0, "cover"))
    assert counted == [int(seen["rows"][1:].sum())]


# ---------------------------------------------------------------- the loop


def training_scenes(m: int = 24):
    rng = np.random.default_rng(0)
    places = [[rng.uniform(-0.3, 0.3, 2) if rng.random() < 0.7 else None for _ in range(4)] for _ in range(m)]
    for row in places:
        row[3] = row[3] if row[3] is not None else np.zeros(2)
    return scenes_of(*places, size=TINY.image_size)


CONFIG = PretrainConfig(TINY, steps=8, batch_size=4, warmup=2, log_every=2, save_every=3)


def test_batches_are_a_function_of_seed_and_step():
    captioner = Captioner(training_scenes())
    first, again, later = (caption_batch(captioner, CONFIG, step) for step in (5, 5, 6))
    assert first.texts == again.texts
    torch.testing.assert_close(first.images, again.images)
    assert first.texts != later.texts
    assert set(first.truth.unique().tolist()) <= {FALSE, UNSURE, TRUE}


def test_relations_come_in_over_the_curriculum():
    captioner = Captioner(training_scenes())
    config = replace(CONFIG, steps=100, batch_size=32, alone=0.1, curriculum=0.5)
    assert all(caption.expression.relation is None for caption in caption_batch(captioner, config, 9).captions)
    assert any(caption.expression.relation is not None for caption in caption_batch(captioner, config, 60).captions)


def test_attention_starts_damped_and_the_rest_as_usual(tmp_path):
    """A step of a vanishing rate shows the start, to half precision."""
    full, tenth = (
        load_tensors(
            pretrain(training_scenes(), replace(CONFIG, steps=1, learning_rate=1e-12, damping=damping), tmp_path / name)
        )[0]
        for name, damping in (("full", 1.0), ("tenth", 0.1))
    )
    damped = {name for name in full if name.endswith(("out_proj.weight", "o_proj.weight"))}
    assert len(damped) == TINY.vision_layers + TINY.language_layers
    for name, tensor in full.items():
        torch.testing.assert_close(
            tenth[name].float(), tensor.float() * (0.1 if name in damped else 1), atol=1e-4, rtol=1e-3
        )


class Killed(Exception): ...


class KilledAt:
    """A ticker that ends a pretraining after some steps, as a kill would."""

    def __init__(self, steps: int):
        self.left = steps

    def advance(self, steps: float = 1, note: str | None = None, before: bool = False) -> None:
        self.left -= steps
        if self.left == 0:
            raise Killed


def test_a_killed_run_goes_on_to_the_same_bits(tmp_path):
    scenes = training_scenes()
    whole = pretrain(scenes, CONFIG, tmp_path / "whole")

    with pytest.raises(Killed):
        pretrain(scenes, CONFIG, tmp_path / "cut", KilledAt(5))
    assert (tmp_path / "cut" / STATE).exists()
    assert not (tmp_path / "cut" / WEIGHTS).exists()
    cut = pretrain(scenes, CONFIG, tmp_path / "cut")
    (ours, _), (expected, _) = load_tensors(cut), load_tensors(whole)
    assert ours.keys() == expected.keys()
    assert all(torch.equal(ours[name], tensor) for name, tensor in expected.items())
    assert [line["step"] for line in read_jsonl(cut.with_name("metrics.jsonl"))] == [2, 4, 6, 8]


@pytest.mark.slow
def test_pretraining_learns(tmp_path):
    """Which of two squares is there is learnt from sentences alone, and the attention goes to it."""
    rows = [[np.zeros(2), None, None, None], [None, None, np.zeros(2), None]] * 16
    scenes = scenes_of(*rows, size=TINY.image_size)
    config = replace(CONFIG, steps=60, batch_size=8, warmup=5, learning_rate=3e-3, log_every=1, save_every=1000)
    pretrain(scenes, config, tmp_path)
    losses = [line["loss"] for line in read_jsonl(tmp_path / "metrics.jsonl")]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
    trained = words.started(replace(TINY, weights=str(tmp_path / WEIGHTS)))
    maps = words.looking(trained)(scenes.images[:2], ["the black bowl", "the ramekin"])
    covered = words.patch_shares(scenes, TINY.grid)[[0, 1], [0, 2]]
    measured = grounding.measure(maps, covered)
    assert measured.pointing.tolist() == [1.0, 1.0]
    assert measured.auroc.min() > 0.9


def test_bad_input_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UserError, match="--image-size"):
        pretrain(scenes_of([np.zeros(2), None, None, None], size=28), CONFIG, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    pretrain(training_scenes(), CONFIG, tmp_path / "run")
    with pytest.raises(UserError, match="steps: 8, now 9"):
        pretrain(training_scenes(), replace(CONFIG, steps=9), tmp_path / "run")


def test_weights_are_half_precision_and_hold_no_queries(tmp_path):
    tensors, metadata = load_tensors(pretrain(training_scenes(), CONFIG, tmp_path))
    assert all(name.startswith("model.") for name in tensors)
    assert {tensor.dtype for tensor in tensors.values()} == {torch.float16}
    assert metadata["backbone"]["width"] == TINY.width
