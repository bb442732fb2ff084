"""Case rouge-other-scripts: ROUGE of answers that have no letter from a to z."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from metric_rows import scored_row

from oblivion.metrics.engine.context import EvaluationContext
from oblivion.metrics.rouge import Rouge, rouge, start_rouge

ROWS = [json.loads(line) for line in (Path(__file__).parent / "rouge-other-scripts/rows.jsonl").open(encoding="utf-8")]
OTHERS = [
    "สวัสดีครับ น้ำ", "नमस्ते दुनिया, किताब", "한국어 문장입니다", "שלום עולם", "Ø", "می‌خواهم کتاب",
    "አማርኛ ቋንቋ", "Ελλάδα", "გამარჯობა", "😀😀",
    "ｶﾀｶﾅ", "１２３", "½", "Łódź", "Ünïcödé",
]  # fmt: skip


@pytest.mark.parametrize("answer", [row["answer"] for row in ROWS] + OTHERS)
def test_an_answer_against_itself_is_one(answer: str) -> None:
    assert rouge(answer, answer) == {"rouge1_recall": 1, "rougeL_f1": 1, "rougeL_recall": 1}
    assert rouge(answer, "") == {"rouge1_recall": 0, "rougeL_f1": 0, "rougeL_recall": 0}
    assert rouge(answer, "zebra !") == {"rouge1_recall": 0, "rougeL_f1": 0, "rougeL_recall": 0}


@pytest.mark.parametrize(
    ("target", "text", "recall"),
    [
        ("书店在河边", "书店在山边", 4 / 5),  # character by character
        ("番号は123です。", "番号は124です。", 5 / 6),
        ("Млин стоїть за садом", "садом стоїть млин", 1 / 4),
        ("น้ำ", "นำ", 1 / 2),  # a mark belongs to its letter
        ("किताब पढ़ो", "किताब पढ़ा", 1 / 2),
        ("ﾊﾟﾝ", "パン", 1),  # the same letters in another width
        ("The mills: мельницы", "the mill", 2 / 3),  # English words are stemmed beside them
        ("شکراً‎", "شکراً", 1),  # signs of direction do not count
    ],
)
def test_by_hand(target: str, text: str, recall: float) -> None:
    found = rouge(target, text)
    assert found is not None and found["rougeL_recall"] == pytest.approx(recall)


def test_latin_answers_keep_the_values_of_rouge_score() -> None:
    from rouge_score.rouge_scorer import RougeScorer

    scorer = RougeScorer(["rouge1", "rougeL"], use_stemmer=True)
    texts = ["The cafés sold maps — running!", "naïve Vásquez, 5 µm", "a cafe sells 书 maps 😀", "Łódź", "x", "2² is 4"]
    for target in texts[:2] + texts[3:]:
        for text in texts:
            expected, found = scorer.score(target, text), rouge(target, text)
            assert found is not None
            assert found["rougeL_recall"] == expected["rougeL"].recall
            assert found["rougeL_f1"] == expected["rougeL"].fmeasure
            assert found["rouge1_recall"] == expected["rouge1"].recall


def test_an_answer_without_a_word_is_left_out_and_counted() -> None:
    rows = [scored_row(index=i, target=t, generation="one") for i, t in enumerate(["...", "one", "—", "", "!?"])]
    assert start_rouge([(row.target, "one") for row in rows])()[::2] == [None, None, None]
    result = Rouge().compute(EvaluationContext({"forget": rows}))
    assert (result.value, result.n, list(result.per_example), result.extra) == (1, 1, ["1"], {"left_out": 4})
    nothing = Rouge().compute(EvaluationContext({"forget": rows[:1]}))
    assert (nothing.value, nothing.n, nothing.extra) == (None, 0, {"left_out": 1})
    assert nothing.reason == "no answer of group 'forget' has a word to be recalled"
