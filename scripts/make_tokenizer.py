"""Make the offline tokenizer of the small backbones: byte-level BPE over every instruction of LIBERO and LIBERO-PRO.

Byte-level, so that any instruction in any words can be encoded; trained on the benchmark's instructions, so that each
of their words is one token. Special tokens have PaliGemma's names and order.

    python scripts/make_tokenizer.py     # rewrites src/la_reconvla/backbones/tokenizer.json
"""

from __future__ import annotations

import re
from pathlib import Path

from libero.libero import get_libero_path
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["<pad>", "<eos>", "<bos>", "<unk>", "<image>"]
OUT = Path(__file__).parents[1] / "src/la_reconvla/backbones/tokenizer.json"


def instructions() -> list[str]:
    """Every ``(:language ...)`` of every BDDL file, sorted, so that the result does not depend on the file system."""
    found = set()
    for path in Path(get_libero_path("bddl_files")).rglob("*.bddl"):
        if match := re.search(r"\(:language\s+(.*?)\)", path.read_text(encoding="utf-8"), re.DOTALL):
            found.add(" ".join(match[1].split()))
    return sorted(found)


def main() -> None:
    """Train and write the tokenizer."""
    corpus = instructions()
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFKC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.save(str(OUT))
    print(f"{len(corpus)} instructions, {tokenizer.get_vocab_size()} tokens -> {OUT}")
    print(tokenizer.encode("Pick the akita black bowl next to the ramekin and place it on the plate").tokens)


if __name__ == "__main__":
    main()
