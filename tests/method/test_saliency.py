"""Saliency sources and the masks that follow them, on drawn maps whose answer is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.ndimage import label

from helpers import HEAD, TINY, random_batch, record_logits, tiny_policy
from la_reconvla.conditions import ARMS, C2, CONDITIONS, FOLLOWING, Condition, condition
from la_reconvla.contracts import Features
from la_reconvla.errors import UserError
from la_reconvla.method.mask import AttentionMask, MaskContext, RandomMask, masked_count
from la_reconvla.method.objective import losses
from la_reconvla.method.reconstruction import Reconstruction
from la_reconvla.method.saliency import MEAN, Mean, saliency
from la_reconvla.method.variants.action_rows import ActionRows
from la_reconvla.method.variants.attention_heads import SinkRemoved, per_head
from la_reconvla.method.variants.content_words import ContentWords, DestinationWords, TargetWords, destination_at
from la_reconvla.method.variants.inverted import InvertedMask
from la_reconvla.method.variants.learned import fit_saliency, unlearned
from la_reconvla.method.variants.localisation_heads import LocalisationHeads, elbow, spatial_entropy
from la_reconvla.method.variants.regions import RegionMask, TwoRegionMask, grow, neighbours
from la_reconvla.method.variants.teacher import EMATeacher, averaged, follow, teacher_of
from la_reconvla.method.variants.warm_up import WarmUp
from la_reconvla.randomness import generator
from la_reconvla.study.presets import PRESETS
from la_reconvla.training.gradient import backward

BOWL = "pick up the black bowl on the ramekin and place it on the plate"


def drawn(
    attention: torch.Tensor,
    rows: torch.Tensor | None = None,
    grid: tuple[int, int] = (4, 4),
    texts: list[str] | None = None,
) -> Features:
    """Features that hold nothing but attention; with texts of one-letter words, each row is a word."""
    b, _, _, t, n = attention.shape
    rows = torch.ones(b, t, dtype=torch.bool) if rows is None else rows
    spans = None
    if texts is not None:
        starts = torch.arange(t) * 2
        spans = torch.stack([starts, starts + 1], dim=-1).expand(b, t, 2)
    nothing = torch.zeros(b, n, 1)
    return Features(nothing, nothing[:, :1], nothing[:, 0], attention, rows, grid, spans, texts=texts)


def random_attention(seed: int, b: int = 2, t: int = 5) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.rand(b, 2, 3, t, 16, generator=draw) ** 6  # peaks, so that there are blobs


# ---------------------------------------------------------------- sources


@given(st.integers(0, 10**6))
def test_the_default_is_the_published_mean_to_the_bit(seed):
    attention, rows = random_attention(seed), torch.tensor([[False, True, True, True, False]] * 2)
    assert torch.equal(Mean()(drawn(attention, rows)), saliency(attention, rows))
    policy, batch = tiny_policy(), random_batch()
    features = policy.features(batch, attention="instruction")
    assert torch.equal(policy.look(batch.inputs), saliency(features.attention, features.token_mask))
    assert Reconstruction().saliency == MEAN == Mean()


@given(st.integers(0, 10**6), st.sampled_from([torch.nan, torch.inf, 1e6]))
def test_padding_never_counts(seed, poison):
    attention, rows = random_attention(seed), torch.tensor([[False, True, True, True, False]] * 2)
    poisoned = attention.masked_fill(~rows[:, None, None, :, None], poison)
    texts = ["x bowl y z w"[:9]] * 2
    for source, state in (
        (Mean(), None),
        (SinkRemoved(), None),
        (ContentWords(), None),
        (LocalisationHeads(), torch.tensor([[0, 1], [1, 2], [1, 0]])),
    ):
        one, two = (source(replace(drawn(a, rows, texts=texts), saliency_state=state)) for a in (attention, poisoned))
        assert torch.equal(one, two), source
        assert torch.isfinite(one).all()
        assert not one.requires_grad
    chosen = [LocalisationHeads().fit([drawn(a, rows)]) for a in (attention, poisoned)]
    assert torch.equal(*chosen)


@given(st.integers(0, 10**6), st.permutations(range(3)))
def test_the_order_of_heads_changes_no_map(seed, order):
    attention = random_attention(seed)
    texts = ["a b c d e"] * 2
    for source in (Mean(), SinkRemoved(), ContentWords()):
        one, two = (source(drawn(a, texts=texts)) for a in (attention, attention[:, :, list(order)]))
        torch.testing.assert_close(one, two)


def test_content_words_of_the_instructions_of_libero():
    def named(source: ContentWords, text: str) -> list[str]:
        return [text[a:z] for a, z in source.words(text)]

    assert named(ContentWords(), BOWL) == ["black", "bowl", "ramekin", "plate"]
    assert named(TargetWords(), BOWL) == ["black", "bowl", "ramekin"]
    assert named(DestinationWords(), BOWL) == ["plate"]
    assert named(DestinationWords(), "put the wine bottle on top of the cabinet") == ["top", "cabinet"]
    assert named(DestinationWords(), "Put the bowl next to the plate in the drawer") == ["drawer"]
    assert named(DestinationWords(), "open the middle drawer of the cabinet") == []
    assert named(TargetWords(), "open the middle drawer of the cabinet") == ["middle", "drawer", "cabinet"]
    assert destination_at("turn on the stove") == len("turn on the stove"), "no verb of placing"


def test_only_the_rows_of_content_words_count():
    attention = torch.zeros(1, 2, 2, 4, 16)
    for t in range(4):
        attention[:, :, :, t, t] = 1.0  # the word t looks at patch t
    features = drawn(attention, texts=["a b a c"])  # "a" is an article
    assert ContentWords()(features).nonzero().tolist() == [[0, 1], [0, 3]]
    torch.testing.assert_close(ContentWords()(features)[0, [1, 3]], torch.tensor([0.5, 0.5]))


def test_tokens_of_the_real_tokenizer_are_those_of_the_words():
    policy = tiny_policy()
    batch = replace(random_batch(1), instructions=[BOWL])
    features = policy.features(batch, attention="instruction")
    chosen = ContentWords().chosen(features)[0]
    covered = "".join(BOWL[a:z] for a, z in features.spans[0][chosen].tolist())
    assert covered.replace(" ", "") == "blackbowlramekinplate"
    expected = features.attention[0][:, :, chosen].mean(dim=(0, 1, 2))
    torch.testing.assert_close(ContentWords()(features)[0], expected)


def test_words_never_fall_back_in_silence():
    features = drawn(random_attention(0, b=1, t=2), texts=["a a"])
    with pytest.raises(ValueError, match="no token that counts"):
        ContentWords()(features)
    with pytest.raises(UserError, match="'put it on' has no word"):
        ContentWords().require([BOWL, "put it on"])
    with pytest.raises(ValueError, match="spans and texts"):
        ContentWords()(drawn(random_attention(0)))
    policy, batch = tiny_policy(), random_batch(1)
    with pytest.raises(ValueError, match="spans and texts"):
        ContentWords()(policy.features(batch, attention="actions"))
    nowhere = DestinationWords()(drawn(random_attention(0, t=3), texts=["a b c"] * 2))
    assert nowhere.isnan().all()
    with pytest.raises(FloatingPointError, match="not finite"):
        AttentionMask()(MaskContext((2, 16), generator(0, "mask"), saliency=nowhere))


def test_a_sink_is_what_every_word_looks_at():
    """Patch 0 takes most of every word's attention; one word looks at patch 5, another at 9."""
    attention = torch.full((1, 2, 3, 4, 16), 0.01)
    attention[..., 0] = 0.7
    attention[:, :, :, 1, 5] = 0.2
    attention[:, :, :, 2, 9] = 0.1
    features = drawn(attention)
    assert Mean()(features).argmax() == 0
    found = SinkRemoved()(features)[0]
    assert found[0] == pytest.approx(0, abs=1e-6)
    assert found.argsort(descending=True)[:2].tolist() == [5, 9]
    assert found[5] == pytest.approx((0.2 + 3 * 0.01) / 4 - 0.01)
    with pytest.raises(ValueError, match="one token"):
        SinkRemoved()(drawn(attention, torch.tensor([[True, False, False, False]])))


def test_sink_removal_equals_numpy():
    attention = random_attention(3)
    a = attention.numpy()
    np.testing.assert_allclose(SinkRemoved()(drawn(attention)), (a.mean(3) - a.min(3)).mean((1, 2)), atol=1e-6)


def test_entropy_of_drawn_maps():
    one, two, corner, flat = np.zeros((4, 6, 6))
    one[1:3, 1:3] = 1
    two[0, 0] = two[5, 5] = 1
    corner[0, 0] = corner[1, 1] = 1  # they touch at a corner: one blob
    flat += 1
    found = spatial_entropy(np.stack([one, two, corner, flat]))
    np.testing.assert_allclose(found, [0, np.log(2), 0, np.inf], atol=1e-12)
    uneven = np.zeros((6, 6))
    uneven[0, 0], uneven[5, 5] = 3, 1
    excess = np.array([3, 1]) - 2 * uneven.mean()
    share = excess / excess.sum()
    assert spatial_entropy(uneven) == pytest.approx(-(share * np.log(share)).sum())


def test_the_elbow_of_a_drawn_curve():
    assert elbow(np.array([0.1, 0.9, 0.11, 0.12, 0.8])) == 0.12
    assert elbow(np.ones(4)) == 1


def test_localisation_heads_look_at_the_image_and_at_one_place():
    """Twelve heads: two place all on one blob, two look away, the others spread theirs over far corners."""
    draw = torch.Generator().manual_seed(0)
    frames, n = 6, 36
    attention = torch.zeros(frames, 3, 4, 2, n)
    corners = torch.tensor([0, 5, 30, 35, 14])
    for frame in range(frames):
        attention[frame, ..., corners] = 0.15 + 0.01 * torch.rand(3, 4, 2, 5, generator=draw)
        for layer, head in ((0, 2), (2, 1)):
            at = 7 * (frame % 5)
            attention[frame, layer, head] = 0
            attention[frame, layer, head, :, at : at + 2] = 0.4
        for layer, head in ((1, 0), (1, 3)):  # one blob, but hardly any of the attention
            attention[frame, layer, head] = 0
            attention[frame, layer, head, :, 20] = 0.01
    order = [2, 0, 3, 1]
    source = LocalisationHeads(count=2)
    turned = source.fit([drawn(attention[:, :, order], grid=(6, 6))])
    assert {(layer, order[head]) for layer, head in turned.tolist()} == {(0, 2), (2, 1)}, "heads by what they do"
    halves = [drawn(part, grid=(6, 6)) for part in attention.split(2)]
    state = source.fit(halves)
    assert {tuple(pair) for pair in state.tolist()} == {(0, 2), (2, 1)}
    assert state.shape == source.state_shape
    found = source(replace(halves[0], saliency_state=state))
    expected = (attention[:2, 0, 2] + attention[:2, 2, 1]).mean(1) / 2
    torch.testing.assert_close(found, expected)


def test_heads_are_never_all_heads_in_silence():
    features = drawn(random_attention(0))
    for state in (None, torch.full((3, 2), -1)):
        with pytest.raises(ValueError, match="no heads were chosen"):
            LocalisationHeads()(replace(features, saliency_state=state))
    with pytest.raises(UserError, match="7 heads cannot be chosen of 6"):
        LocalisationHeads(count=7).fit([features])
    with pytest.raises(ValueError, match="at least 1"):
        LocalisationHeads(count=0)


def test_action_rows_are_the_rows_of_the_action_tokens():
    policy, batch = tiny_policy(), random_batch()
    features = policy.features(batch, attention="actions")
    assert features.attention.shape[3] == TINY.chunk
    looked = policy.look(batch.inputs, source=ActionRows())
    torch.testing.assert_close(looked, features.attention.mean(dim=(1, 2, 3)))
    assert not torch.allclose(looked, policy.look(batch.inputs))


def test_the_teacher_is_the_moving_average_in_closed_form():
    policy = tiny_policy()
    backbone = policy.backbone
    teacher = teacher_of(backbone)
    name = "queries"
    start = backbone.queries.detach().clone()
    for step in range(1, 4):
        with torch.no_grad():
            backbone.queries.copy_(start + step)
        follow(teacher, backbone, 0.9)
    expected = start + sum(0.1 * 0.9 ** (3 - step) * step for step in range(1, 4))
    torch.testing.assert_close(averaged(teacher, backbone)[name][0], expected)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert all(p.requires_grad for p in backbone.parameters())


def test_a_teacher_shares_what_is_frozen():
    backbone = tiny_policy().backbone
    backbone.model.vision_tower.requires_grad_(False)
    teacher = teacher_of(backbone)
    own = averaged(teacher, backbone)
    assert not any("vision_tower" in name for name in own)
    shared = dict(teacher.named_parameters())
    assert all(p is shared[name] for name, p in backbone.named_parameters() if "vision_tower" in name)
    assert "queries" in own


def test_the_mask_follows_the_teacher_and_no_gradient_reaches_it():
    policy, batch = tiny_policy(), random_batch()
    teacher = teacher_of(policy.backbone)
    with torch.no_grad():
        for p in teacher.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    arm = Reconstruction(reconstruction_head=HEAD, saliency=EMATeacher())
    found = losses(policy, batch, arm, generator(0, "mask"), teacher=teacher)
    found.total.backward()
    assert torch.equal(found.saliency, Mean()(policy.features(batch, attention="instruction", teacher=teacher)))
    assert not torch.equal(found.saliency, policy.look(batch.inputs))
    assert all(p.grad is None for p in teacher.parameters())
    plain = losses(policy, batch, Reconstruction(reconstruction_head=HEAD), generator(0, "mask"))
    torch.testing.assert_close(found.action, plain.action)
    scaler = torch.amp.GradScaler(enabled=False)
    with pytest.raises(ValueError, match="reads a teacher"):
        backward(policy, batch, Condition("T", "teacher", arm), 1, generator(0, "mask"), scaler, torch.float32)
    with pytest.raises(ValueError, match="no teacher of its own"):
        EMATeacher(source=EMATeacher())
    with pytest.raises(ValueError, match="below 1"):
        EMATeacher(decay=1.0)


# ---------------------------------------------------------------- masks


def is_connected(mask: np.ndarray, grid: tuple[int, int]) -> bool:
    return label(mask.reshape(grid))[1] == 1


@given(st.integers(0, 10**6), st.integers(2, 7), st.integers(2, 7), st.sampled_from([0.1, 0.25, 0.6]))
def test_regions_are_connected_and_exact(seed, rows, columns, fraction):
    n = rows * columns
    draw = torch.Generator().manual_seed(seed)
    scores = torch.rand(3, n, generator=draw)
    k = masked_count(fraction, n)
    mask = RegionMask(fraction)(MaskContext((3, n), draw, saliency=scores, grid=(rows, columns)))
    assert mask.sum(1).tolist() == [k] * 3
    assert mask[torch.arange(3), scores.argmax(1)].all()
    assert all(is_connected(m, (rows, columns)) for m in mask.numpy())

    second = torch.rand(3, n, generator=draw)
    second[0] = torch.nan  # names no destination
    context = MaskContext((3, n), draw, saliency=scores, grid=(rows, columns), maps=(scores, second))
    two = TwoRegionMask(fraction)(context)
    assert two.sum(1).tolist() == [k] * 3
    assert torch.equal(two[0], mask[0])


@given(st.integers(0, 10**6))
def test_regions_equal_a_slow_growth(seed):
    draw = np.random.default_rng(seed)
    scores, grid, k = draw.random(20), (4, 5), 7
    region = {int(scores.argmax())}
    while len(region) < k:
        beside = {
            q for p in region for q in range(20) if abs(p // 5 - q // 5) + abs(p % 5 - q % 5) == 1 and q not in region
        }
        region.add(max(beside, key=lambda q: scores[q]))
    found = grow(torch.from_numpy(scores)[None], torch.tensor([k]), grid)
    assert set(found[0].nonzero().flatten().tolist()) == region


def test_a_drawn_region_stays_together_where_the_scattered_mask_does_not():
    scores = torch.tensor([[9, 1, 0, 8], [2, 3, 0, 0], [0, 0, 0, 0], [0, 0, 0, 7.0]]).view(1, 16)
    scattered = AttentionMask()(MaskContext((1, 16), generator(0, "mask"), saliency=scores))
    region = RegionMask()(MaskContext((1, 16), generator(0, "mask"), saliency=scores, grid=(4, 4)))
    assert scattered.nonzero()[:, 1].tolist() == [0, 3, 5, 15]
    assert region.nonzero()[:, 1].tolist() == [0, 1, 4, 5]


def test_two_drawn_regions():
    target, destination = torch.zeros(2, 1, 16)
    target[0, [0, 1]] = torch.tensor([2.0, 1.0])
    destination[0, [0, 15, 14]] = torch.tensor([9.0, 2.0, 1.0])  # patch 0 is taken
    mask = TwoRegionMask()(MaskContext((1, 16), generator(0, "mask"), grid=(4, 4), maps=(target, destination)))
    assert mask.nonzero()[:, 1].tolist() == [0, 1, 14, 15]


def test_a_region_that_is_shut_in_goes_on_elsewhere_and_stays_exact():
    scores = torch.zeros(1, 9)
    scores[0, 0] = 1.0
    taken = neighbours(torch.tensor([[True] + [False] * 8]), (3, 3))  # both neighbours of the corner
    found = grow(scores, torch.tensor([4]), (3, 3), taken)
    assert found.sum() == 4
    assert found[0, 0]
    assert not (found & taken).any()


def test_masks_say_what_they_lack():
    draw = generator(0, "mask")
    with pytest.raises(ValueError, match="needs the patches' grid"):
        RegionMask()(MaskContext((1, 16), draw, saliency=torch.rand(1, 16)))
    with pytest.raises(ValueError, match="needs saliency"):
        RegionMask()(MaskContext((1, 16), draw, grid=(4, 4)))
    with pytest.raises(ValueError, match="maps of both sources, got 0"):
        TwoRegionMask()(MaskContext((1, 16), draw, saliency=torch.rand(1, 16), grid=(4, 4)))
    with pytest.raises(ValueError, match="the same attention rows"):
        Reconstruction(TwoRegionMask(), saliency=ActionRows())


@pytest.mark.parametrize("inner", [AttentionMask(), RegionMask(), TwoRegionMask()], ids=lambda mask: mask.label)
def test_a_warm_up_masks_what_the_random_arm_masks_and_then_follows(inner):
    policy, batch = tiny_policy(), random_batch()
    arm, random = Reconstruction(WarmUp(inner, share=0.5), HEAD), Reconstruction(RandomMask(), HEAD)
    for step, done in ((0, 0.0), (1, 0.49)):
        one, two = (losses(policy, batch, a, generator(5, "mask", step), done) for a in (arm, random))
        assert torch.equal(one.mask, two.mask)
        assert torch.equal(one.total, two.total)
    late = losses(policy, batch, arm, generator(5, "mask", 2), 0.5)
    follows = losses(policy, batch, Reconstruction(inner, HEAD), generator(5, "mask", 2), 0.5)
    assert torch.equal(late.mask, follows.mask)


@given(draw=st.integers(0, 1000), n=st.integers(2, 30))
def test_the_inverted_mask_takes_the_lowest_patches_and_none_that_the_method_takes(draw: int, n: int):
    scores = torch.rand(2, n, generator=generator(draw, "x"))
    context = MaskContext((2, n), generator(0, "mask"), saliency=scores)
    mask, k = InvertedMask()(context), -(-n // 4)
    lowest = np.argsort(scores.numpy(), axis=1, kind="stable")[:, :k]
    assert [set(row.nonzero()[:, 0].tolist()) for row in mask] == [set(row) for row in lowest.tolist()]
    assert not (mask & AttentionMask()(context)).any()
    with pytest.raises(ValueError, match="needs saliency"):
        InvertedMask()(MaskContext((2, n), generator(0, "mask")))


# ---------------------------------------------------------------- arms


def test_every_source_is_an_arm_outside_the_default_study():
    assert not {arm.id for arm in FOLLOWING} & {arm.id for arm in ARMS}
    made_of = {repr((a.reconstruction, a.budget, a.blind, a.head_start)) for a in CONDITIONS.values()}
    assert len(CONDITIONS) == len(made_of)
    study = PRESETS["smoke"].changed(conditions=("C1", "C2", *(arm.id for arm in FOLLOWING)))
    for id in study.conditions:
        assert condition(id).id == id
    with pytest.raises(UserError, match="did you mean C4-localised"):
        condition("C4-localisedd")


@pytest.mark.parametrize("arm", FOLLOWING, ids=lambda arm: arm.id)
def test_one_step_of_every_arm(arm):
    arm = arm.with_reconstruction_head(HEAD)
    policy, batch = tiny_policy(), random_batch()
    source = arm.saliency
    assert source is not None
    learned = arm.learned_saliency
    policy.register_buffer("saliency_state", unlearned(learned.state_shape if learned else ()))
    if learned:
        fit_saliency(policy, learned, [batch])
    teacher = teacher_of(policy.backbone) if learned and learned.decay else None
    found = losses(policy, batch, arm.reconstruction, generator(0, "mask"), 1.0, teacher)
    assert found.mask.sum(1).tolist() == [4] * 3
    assert found.saliency.shape == (3, 16)
    found.total.backward()
    assert all(torch.isfinite(p.grad).all() for p in policy.parameters() if p.grad is not None)
    random = losses(
        policy,
        batch,
        replace(C2, reconstruction=Reconstruction(RandomMask(), HEAD)).reconstruction,
        generator(0, "mask"),
    )
    torch.testing.assert_close(found.action, random.action)


@pytest.mark.parametrize("source", [Mean(), ContentWords(), SinkRemoved(), ActionRows()], ids=lambda s: s.label)
def test_the_action_loss_moves_the_attention_logits_of_the_rows_that_the_source_reads(source):
    policy, batch = tiny_policy(), random_batch()
    features = policy.features(batch, attention=source.attention_rows)
    rows = source.chosen(features) if isinstance(source, ContentWords) else features.token_mask
    logits = record_logits(policy)
    losses(policy, batch, None, generator(0, "mask")).action.backward()
    told = policy.backbone.encode(batch.instructions).token_mask.shape[1]
    first = 16 if source.attention_rows == "instruction" else 16 + told
    for layer in policy.backbone.saliency_layers:
        live = logits[layer].grad[:, :, first : first + rows.shape[1], :16].abs().sum(dim=(1, 3))
        assert (live[rows] > 1e-9).all(), f"layer {layer}"


def test_the_policy_keeps_what_its_source_has_learned():
    policy, batch = tiny_policy(), random_batch()
    assert "saliency_state" not in policy.state_dict()
    source = LocalisationHeads(count=2)
    policy.register_buffer("saliency_state", unlearned(source.state_shape))
    fit_saliency(policy, source, [batch])
    features = policy.features(batch, attention="instruction")
    assert torch.equal(policy.state_dict()["saliency_state"], source.fit([features]))
    layers, heads = policy.saliency_state.unbind(-1)
    expected = per_head(features)[:, layers, heads].mean(1)
    torch.testing.assert_close(policy.look(batch.inputs, source=source), expected)
