"""VQA accuracy: agreement of an answer with those of human annotators (arXiv 1505.00468, section 3)."""

import re
from collections.abc import Sequence

PUNCTUATION = ';/[]"{}()=+\\_-><@`,?!'
COMMA_IN_NUMBER = re.compile(r"\d,\d")
PERIOD = re.compile(r"\.(?!\d)")
NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
DIGITS = {word: str(number) for number, word in enumerate(NUMBERS)} | {"none": "0"}
ARTICLES = ("a", "an", "the")
SPELT = """
    ain't aren't can't could've couldn't couldn't've didn't doesn't don't hadn't hadn't've hasn't haven't he'd
    he'd've he's how'd how'll how's isn't it'd it'd've it'll ma'am mightn't mightn't've might've mustn't must've
    needn't not've o'clock oughtn't 'ow's'at shan't she'd've should've shouldn't shouldn't've somebody'd've
    somebody'll somebody's someone'd someone'd've someone'll someone's something'd something'd've something'll
    that's there'd there'd've there're there's they'd they'd've they'll they're they've 'twas wasn't we'd've we've
    weren't what'll what're what's what've when's where'd where's where've who'd who'd've who'll who's who've why'll
    why're why's won't would've wouldn't wouldn't've y'all y'all'll y'all'd've you'd you'd've you'll you're you've
"""
CONTRACTIONS = {word[: m.start()] + word[m.end() :]: word for word in SPELT.split() for m in re.finditer("'", word)}
"""Maps contractions that lack one apostrophe to their correct spelling."""


def vqa_accuracy(answer: str, said: Sequence[str]) -> float:
    """Returns the accuracy in percent of an answer, given the annotators' answers `said`.

    It is min(1, matches / 3), averaged over all subsets that leave one annotator out. As in the reference, the answer
    is normalised in full; annotators' answers lose their punctuation only, and only if they differ.
    Raises ValueError if there are no annotators' answers.
    """
    if not said:
        raise ValueError(f"VQA accuracy of {answer!r}: no human answers to compare with")
    answer = normalise_words(strip_punctuation(" ".join(answer.split())))
    said = [" ".join(s.split()) for s in said]
    people = [strip_punctuation(s) for s in said] if len(set(said)) > 1 else said
    matches = [s == answer for s in people]
    return 100 * sum(min(1.0, (sum(matches) - match) / 3) for match in matches) / len(matches)


def direct_answer_accuracy(answer: str, said: Sequence[str]) -> float:
    """Returns A-OKVQA's accuracy of a direct answer (arXiv 2206.01718), in percent: min(1, equal texts / 3)."""
    return 100 * min(1.0, list(said).count(answer) / 3)


def strip_punctuation(text: str) -> str:
    """Removes punctuation as the reference does.

    A mark that occurs next to a space is removed, another becomes a space; all marks are removed from a text with a
    number such as 1,000. Periods remain before digits alone.
    """
    result = text
    for mark in PUNCTUATION:
        loose = f"{mark} " in text or f" {mark}" in text or COMMA_IN_NUMBER.search(text)
        result = result.replace(mark, "" if loose else " ")
    return PERIOD.sub("", result)


def normalise_words(text: str) -> str:
    """Returns the text in lower case, number words as digits, without articles, contractions with apostrophes."""
    words = (DIGITS.get(word, word) for word in text.lower().split())
    return " ".join(CONTRACTIONS.get(word, word) for word in words if word not in ARTICLES)
