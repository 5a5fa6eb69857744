"""What a study judges, declared before it runs: the family of comparisons, the margin, and the claims in words."""

SAME_WITHIN = 0.05  # success rates closer than this count as equal: five points
FAMILY = (
    *(("C4", other, metric) for metric in ("tsr", "aos") for other in ("C2", "C1")),
    *(("R1", other, "tsr") for other in ("R2", "R3")),
)
"""Comparisons declared before the data were seen; Holm's correction runs over these."""
ARM = "C4", "R1", "tsr"
"""What H1 judges, by equivalence."""
LOSSES = ARM[:2], ("C4", "C2"), ("C4", "C1")
"""Pairs of arms whose losses on other suites are compared. H4 judges the first."""
WHAT = ("R1", "R2"), ("R1", "R3"), ("A1", "D2"), ("G1", "C2"), ("G2", "D2"), ("C4", "G1")
"""Pairs of the grid with one head and two regions."""
HEADS = ("A1", "C4"), ("D2", "C2"), ("G2", "G1")
"""Pairs of the grid with one region and two heads."""
EXPLORATORY = (
    *(("C4", o, metric) for metric in ("approached", "grasped", "lifted", "smallest_distance") for o in ("C2", "C1")),
    *((a, b, metric) for a, b in (*WHAT, *HEADS) for metric in ("tsr", "approached", "action_error", "aos")),
    *((*ARM[:2], metric) for metric in ("approached", "action_error", "aos")),
)
"""Comparisons outside of the declared family, not corrected for their number."""
HEADLINE = "C4>C2"
CLAIMS = {
    HEADLINE: "Reconstructing where the instruction looks (C4) gives more successes than reconstructing anywhere (C2).",
    "H1": "C4 succeeds within five points of the ReconVLA arm, without annotation.",
    "H2": "C4 is three to five times faster than ReconVLA.",
    "H3": "Attention rests more on the task's object under C4 than under C1 and C2.",
    "H4": "Under changed wording, objects and suites C4 loses less than the ReconVLA arm.",
    "image": "The policies use the image: their action error is lower than with a grey image and than that of a policy "
    "trained without images.",
    "words": "The policies use the words: their action error is lower than under a wrong instruction.",
}
