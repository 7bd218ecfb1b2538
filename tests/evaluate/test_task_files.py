"""The layouts of tasks, as they are distributed and as users make them, and what is refused of them."""

import csv
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from llmforge.errors import UserError
from llmforge.evaluate.tasks import find, layouts, names
from llmforge.evaluate.tasks.layout import prompt
from llmforge.evaluate.tasks.loading import load_tasks
from llmforge.evaluate.tasks.question import LETTERS

ASKED = ("How many legs has a cat?", ["two", "four", "six", "eight"], "B")
SECOND = ("Where does the rat sit?", ["on a mat", "in a hat", "at home", "nowhere"], "A")


def rows(*questions):
    return [[stem, *options, letter] for stem, options, letter in questions]


def write_csv(path: Path, lines) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows(lines)
    return path


def write_jsonl(path: Path, records) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(one, ensure_ascii=False) + "\n" for one in records), encoding="utf-8")
    return path


def record(question, **more):
    stem, options, letter = question
    return {"question": stem, **dict(zip("ABCD", options, strict=False)), "answer": letter, **more}


def one(path, shots=0, **more):
    (task,) = load_tasks([str(path)], shots, **more)
    return task


def asked(task, number=0, listed=True):
    """The whole prompt of a question of the first subject."""
    subject = task.subjects[0]
    return prompt(task.layout.style(subject), subject, subject.questions[number], listed)


def test_mmlu(tmp_path):
    write_csv(tmp_path / "dev" / "high_school_biology_dev.csv", rows(SECOND))
    write_csv(tmp_path / "test" / "high_school_biology_test.csv", rows(ASKED))
    write_csv(tmp_path / "auxiliary_train" / "arc_easy.csv", rows(SECOND))
    task = one(tmp_path, 1)
    assert (task.kind, [subject.name for subject in task.subjects]) == ("mmlu", ["high_school_biology"])
    assert asked(task) == (
        "The following are multiple choice questions (with answers) about high school biology.\n\n"
        "Where does the rat sit?\nA. on a mat\nB. in a hat\nC. at home\nD. nowhere\nAnswer: A\n\n"
        "How many legs has a cat?\nA. two\nB. four\nC. six\nD. eight\nAnswer:"
    )
    single = one(tmp_path / "test" / "high_school_biology_test.csv", 1)  # a file finds its dev split
    assert asked(single) == asked(task)
    assert "eight" not in asked(task, listed=False)


def test_ceval_measures_its_validation_split_since_the_answers_of_test_are_not_published(tmp_path):
    header = ["id", "question", "A", "B", "C", "D", "answer"]
    write_csv(tmp_path / "dev" / "law_dev.csv", [[*header, "explanation"], [0, *rows(SECOND)[0], "because"]])
    write_csv(tmp_path / "val" / "law_val.csv", [header, [0, *rows(ASKED)[0]]])
    write_csv(tmp_path / "test" / "law_test.csv", [header[:-1], [0, *rows(ASKED)[0][:-1]]])
    task = one(tmp_path, 1)
    assert task.kind == "ceval"
    assert asked(task).startswith("以下是中国关于法学考试的单项选择题，请选出其中的正确答案。\n\nWhere")
    assert asked(task).endswith("D. eight\n答案：")
    with pytest.raises(UserError, match="are not published"):
        one(f"ceval={tmp_path / 'test'}")


def test_cmmlu(tmp_path):
    header = ["", "Question", "A", "B", "C", "D", "Answer"]
    for split, question in (("dev", SECOND), ("test", ASKED)):
        write_csv(tmp_path / split / "agronomy.csv", [header, [0, *rows(question)[0]]])
    task = one(tmp_path, 1)
    assert (task.kind, len(task.subjects)) == ("cmmlu", 1)
    assert asked(task).startswith("以下是关于农学的单项选择题，请直接给出正确答案的选项。\n\nWhere")


def agieval(stem, options, label, passage=None):
    return {
        "passage": passage,
        "question": stem,
        "options": options,
        "label": label,
        "answer": None,
        "other": None,
    }


def test_agieval_with_its_shots_and_what_has_no_single_answer_passed_over(tmp_path, capfd):
    lettered = [f"({a}){text}" for a, text in zip("ABCD", ASKED[1], strict=True)]
    write_jsonl(
        tmp_path / "v1" / "gaokao-physics.jsonl",
        [
            agieval("猫有几条腿？", lettered, "B", "一只猫。"),
            agieval("选项如何？", lettered, ["A", "D"]),
            agieval("无答案", lettered, ""),
            agieval("单个", lettered, ["C"]),
        ],
    )
    write_jsonl(tmp_path / "v1" / "math.jsonl", [{**agieval("1 + 1?", None, None), "answer": "2"}])
    shot = repr(agieval("鼠在哪里？", ["A. 家\tB. 帽子\tC. 垫子\tD. 无"], "A"))
    header = ["", "gaokao-physics", "math"]
    write_csv(
        tmp_path / "few_shot_prompts.csv", [header, ["sample 1", shot, ""], ["explanation 1", "因为", ""]]
    )
    task = one(tmp_path / "v1", 1)
    assert (task.kind, task.scoring) == ("agieval", ("letter", "exact"))
    assert [question.letter for question in task.subjects[0].questions] == ["B", "C"]
    assert asked(task) == (
        "以下是考试中各个问题的答案。\n\n问题：鼠在哪里？ 从以下选项中选择：(A)家 (B)帽子 (C)垫子 (D)无\n答案：A\n\n"
        "一只猫。\n\n问题：猫有几条腿？ 从以下选项中选择：(A)two (B)four (C)six (D)eight\n答案："
    )
    said = capfd.readouterr().err
    assert "1 questions with several answers are passed over, the first one at" in said
    assert "gaokao-physics.jsonl, line 3" in said
    assert "1 questions with a free answer are passed over" in said
    with pytest.raises(UserError, match=r"the dev split of gaokao-physics has 1 questions, and --shots 2"):
        one(tmp_path / "v1", 2)


def test_gaokao_bench_whose_options_stand_in_the_text(tmp_path, capfd):
    def example(question, answer, name="answer"):
        return {
            "year": "2010",
            "category": "",
            "question": question,
            name: answer,
            "analysis": "",
            "index": 0,
            "score": 4,
        }

    stem = "1．（ 4分）猫有几条腿（ 　　） \n"
    examples = [
        example(f"{stem}A．两条、三条  B．四条  C．六条  D．八条\n", ["B"]),
        example(f"{stem}A. 1\nB. 4\nC. 6\n", ["A"], "standard_answer"),
        example(f"{stem}A. 1\nB. 4\nC. 6\nD. 8", ["A", "C"]),
        example(f"{stem}A. 1\nB. 4\nD. 8", ["A"]),
    ]
    folder = tmp_path / "Data" / "Objective_Questions"
    folder.mkdir(parents=True)
    whole = {"keywords": "2010-2022_Biology_MCQs", "example": examples}
    (folder / "2010-2022_Biology_MCQs.json").write_text(
        json.dumps(whole, ensure_ascii=False), encoding="utf-8"
    )
    (folder / "2010_Math.json").write_text(
        json.dumps({"keywords": "x", "example": [example("解", "证明如下")]}), encoding="utf-8"
    )
    task = one(tmp_path)
    assert (task.kind, [subject.name for subject in task.subjects]) == ("gaokao", ["Biology_MCQs"])
    first, second = task.subjects[0].questions
    assert (first.options, first.letter) == (("两条、三条", "四条", "六条", "八条"), "B")
    assert (second.options, second.letter) == (("1", "4", "6"), "A")
    assert asked(task) == f"{examples[0]['question'].strip()}\n答案："
    assert asked(task, listed=False).endswith("猫有几条腿（ 　　）\n答案：")
    said = capfd.readouterr().err
    assert all(
        text in said for text in ("with several answers", "cannot be told apart", "with a free answer")
    )
    with pytest.raises(UserError, match="no dev split to take shots from; give --shots 0"):
        one(tmp_path, 1)


@pytest.mark.parametrize("suffix", ["csv", "tsv", "jsonl", "json", "parquet"])
def test_tables_of_ones_own_in_every_format(tmp_path, suffix):
    def write(name, *questions):
        records = [record(question, subject="cats") for question in questions]
        path = tmp_path / f"{name}.{suffix}"
        if suffix == "jsonl":
            write_jsonl(path, records)
        elif suffix == "json":
            path.write_text(json.dumps(records), encoding="utf-8")
        elif suffix == "parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            with path.open("w", encoding="utf-8-sig", newline="") as file:  # as Excel writes it
                writer = csv.DictWriter(file, records[0], delimiter="\t" if suffix == "tsv" else ",")
                writer.writeheader()
                writer.writerows(records)
        return path

    write("pets_dev", SECOND)
    task = one(write("pets_test", ASKED, ('Is\nit, "so"?', ["yes", "no", "may be", "never"], "d")), 1)
    assert [subject.name for subject in task.subjects] == ["cats"]
    assert [question.letter for question in task.subjects[0].questions] == ["B", "D"]
    assert task.subjects[0].questions[1].stem == 'Is\nit, "so"?'
    assert task.subjects[0].shots[0].stem == SECOND[0]


def test_lists_of_options_as_the_data_sets_of_the_hub_have_them(tmp_path):
    stem, options, _ = ASKED
    write_jsonl(
        tmp_path / "a.jsonl",
        [
            {"question": stem, "choices": options, "answer": 1},
            {"question": stem, "choices": {"text": options, "label": ["1", "2", "3", "4"]}, "answerKey": "2"},
            {
                "question": stem,
                "options": [f"{a}. {text}" for a, text in zip("ABCD", options, strict=True)],
                "label": "B",
            },
            {"question": stem, "choices": options[:3], "answer": "four"},
            {"Question": stem, "choices": options, "Answer": " (b) "},
        ],
    )
    questions = one(tmp_path / "a.jsonl").subjects[0].questions
    assert [question.answer for question in questions] == [1] * 5
    assert {question.options[1] for question in questions} == {"four"}


def test_two_to_26_options(tmp_path):
    for count in (2, 26):
        fields = dict(zip(LETTERS, map(str, range(count)), strict=False))
        path = write_jsonl(
            tmp_path / f"{count}.jsonl", [{"question": "q", **fields, "answer": LETTERS[count - 1]}]
        )
        assert len(one(path).subjects[0].questions[0].options) == count


def test_questions_in_chinese_are_asked_in_chinese_and_japanese_ones_are_not(tmp_path):
    for stem, ending in (
        ("猫有几条腿？", "答案："),
        ("猫の足は何本ですか", "Answer:"),
        ("Katze?", "Answer:"),
    ):
        path = write_jsonl(tmp_path / "a.jsonl", [record((stem, ["1", "4", "6", "8"], "B"))])
        assert asked(one(path)).endswith(ending)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        ("a.jsonl", [record(ASKED), record((ASKED[0], ["two", "four", "six"], "B"))], "a.jsonl, line 2: option D is empty, where 4 options"),
        ("a.jsonl", [record(ASKED), record(ASKED, E="ten")], "a.jsonl, line 2: an option E, where the questions before have 4"),
        ("a.jsonl", [record(ASKED) | {"C": ""}], "a.jsonl, line 1: option C is empty"),
        ("a.jsonl", [{"question": "q", "A": "x", "C": "y", "answer": "A"}], "line 1: there is an option C and no option B"),
        ("a.jsonl", [{"question": "q", "A": "x", "answer": "A"}], "line 1: 1 options; a question has from 2 to 26"),
        ("a.jsonl", [record(ASKED) | {"answer": "E"}], "line 1: the answer 'E' is none of A, B, C, D"),
        ("a.jsonl", [record(ASKED) | {"answer": "AC"}], "line 1: the answer 'AC' is none of"),
        ("a.jsonl", [record(ASKED) | {"answer": 1}], "line 1: the answer '1' is none of"),
        ("a.jsonl", [{"question": "q", "choices": ["x", "y"], "answer": 2}], "line 1: the answer '2' is none of A, B"),
        ("a.jsonl", [record(ASKED) | {"answer": ""}], "line 1: there is no answer"),
        ("a.jsonl", [record(ASKED) | {"question": " "}], "line 1: there is no text in the field 'question'"),
        ("a.jsonl", [{"text": "a document"}], "line 1: there is no text in the field 'question'"),
        ("a.jsonl", [], "a.jsonl: there is no question in it"),
        ("a.jsonl", b'{"question": \n', "a.jsonl, line 1: broken JSON"),
        ("a.jsonl", b"[1]\n", "a.jsonl, line 1: no JSON object"),
        ("a.csv", b"question,A,B,answer\nq,x,y,A\nq,x,y,z,A\n", "a.csv, line 3: 5 cells, where the header has 4"),
        ("a.csv", b'question,A,B,answer\n"q\nr",x,,A\n', "a.csv, line 2: option B is empty"),
        ("a.csv", b'question,A,B,answer\nq,x,y,A\n"q,x,y,A\n', "a.csv, line 3: broken CSV"),
        ("a.csv", "question,A,B,answer\n问,对,错,A\n".encode("gbk"), "a.csv, line 2: invalid UTF-8; convert the file (iconv -f GB18030"),
        ("a.parquet", b"PAR1 no", "a.parquet is no parquet file that can be read"),
        ("test/a_test.csv", b"q,1,2,3,4,A\nq,1,2,3,A\n", "line 2: 5 cells, where MMLU has 6"),
        ("test/a_test.csv", b"q,1,2,3,4,A\nq,1,2,3,4,E\n", "line 2: the answer 'E' is none of A, B, C, D"),
        ("test/a_test.csv", b"q,1,2,3,4,A\nq,1,,3,4,A\n", "line 2: the question or one of its four options is empty"),
        ("v1/x.jsonl", [agieval("q", ["(A)1", "(B)2"], "C")], "line 1: the answer 'C' is none of A, B"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_with_file_and_line(tmp_path, name, content, sentence):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        write_jsonl(path, content)
    with pytest.raises(UserError) as error:
        one(path)
    assert sentence in str(error.value)
    assert str(path) in str(error.value)


def test_shots_without_a_dev_split_or_with_an_empty_one_are_refused(tmp_path):
    path = write_jsonl(tmp_path / "cats.jsonl", [record(ASKED)])
    with pytest.raises(
        UserError, match=r"the dev split of cats has no questions, and --shots 1 asks for more.*cats_dev"
    ):
        one(path, 1)
    write_jsonl(tmp_path / "cats_dev.jsonl", [])
    with pytest.raises(UserError, match=r"cats_dev.jsonl: there is no question in it"):
        one(path, 1)


def test_names_that_are_wrong(tmp_path):
    with pytest.raises(UserError, match="does not exist"):
        one(tmp_path / "nowhere")
    with pytest.raises(UserError, match="has no file of questions"):
        one(tmp_path)
    path = write_jsonl(tmp_path / "a.jsonl", [record(ASKED)])
    with pytest.raises(UserError, match="--tasks has a twice"):
        load_tasks([str(path), str(path)], 0)


FLASHCARDS = '''
"""Flash cards: a line a question, `question | right | wrong | ...`."""

from llmforge.evaluate.tasks.layout import ENGLISH, Layout
from llmforge.evaluate.tasks.question import Question, Subject


def read(path, shots):
    cards = [line.split(" | ") for line in path.read_text().splitlines()]
    return [Subject("cards", [Question(q, tuple(options), 0, f"{path}, line {n}") for n, (q, *options) in enumerate(cards, 1)])]


LAYOUT = Layout(lambda path: path.suffix == ".cards", read, lambda subject: ENGLISH)
'''


def test_one_file_adds_a_layout(tmp_path, monkeypatch):
    (tmp_path / "files").mkdir()
    (tmp_path / "files" / "flashcards.py").write_text(FLASHCARDS)
    monkeypatch.setattr(layouts, "__path__", [*layouts.__path__, str(tmp_path / "files")])
    assert names() == ["agieval", "ceval", "cmmlu", "flashcards", "gaokao", "mmlu", "table"]
    (tmp_path / "a.cards").write_text("How many legs? | four | two\n")
    task = one(tmp_path / "a.cards")
    assert (task.kind, find("flashcards")) == ("flashcards", task.layout)
    assert asked(task).endswith("How many legs?\nA. four\nB. two\nAnswer:")
