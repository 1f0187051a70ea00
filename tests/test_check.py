"""`python -m rmkit.check`: every fault of a server by its name, on a stand-in; a folder by itself."""

import json
import math
import threading
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from rmkit import check
from rmkit.checking import diagnosis, server
from rmkit.checking.expected import Expected, expected_of
from rmkit.errors import UserError
from support.saved import small, written

TEXTS, SCORES = ["<s>a</s>", "<s>b</s>", "<s>c</s>"], [-0.74, 0.31, 2.04]
DOUBLED, OTHER_ROW = [-0.9, 0.5, 1.4], [0.2, -1.1, 0.6]
MESSAGES = [[{"role": "user", "content": text}, {"role": "assistant", "content": "x"}] for text in "abc"]
IDS = [[1, 7, 2], [1, 8, 2], [1, 9, 2]]


def contract(labels=1):
    held = {"texts": TEXTS, "scores": SCORES, "messages": MESSAGES, "ids": IDS, "bos_doubled": DOUBLED}
    if labels == 2:
        held["by_label"] = [list(row) for row in zip(OTHER_ROW, SCORES, strict=True)]
    reward = [0.0] * (labels - 1) + [1.0]
    return {"self_check": held, "head": {"labels": ["x"] * labels, "reward": reward, "rated": False}}


def sigmoid(score):
    return 1 / (1 + math.exp(-score))


def each(change):
    return lambda door, scores: [[change(score)] for score in scores]


FAULTS = {
    "same": (each(float), "same", "same", "same"),
    "round-off": (each(lambda s: s + 2e-6), "same", "same", "same"),
    "sigmoid": (each(sigmoid), "sigmoid", "sigmoid", "sigmoid"),
    "softmax": (each(lambda s: 1.0), "softmax", "softmax", "softmax"),
    "half": (each(lambda s: s + 4e-3 * math.sin(9 * s)), *["half precision"] * 3),
    "offset": (each(lambda s: s + 0.02), *["constant offset"] * 3),
    "bos": (lambda door, s: [[d] for d in (DOUBLED if door == "text" else s)], "same", "BOS doubled", "same"),
    "bos sigmoid": (
        lambda door, s: [[sigmoid(d)] for d in (DOUBLED if door == "text" else s)],
        *("sigmoid", "BOS doubled and sigmoid", "sigmoid"),
    ),
    "template": (lambda door, s: [[v + (door == "messages") * (3 + v)] for v in s], "other template", "same", "same"),
    "other": (each(lambda s: 3 - 2 * s), *["other scores"] * 3),
    "nan": (each(lambda s: math.nan), *["other scores"] * 3),
    "row": (lambda door, s: [[score] for score in OTHER_ROW], *["wrong row of a binary head"] * 3),
    "both rows": (lambda door, s: [list(row) for row in zip(OTHER_ROW, s, strict=True)], *["same"] * 3),
    "both rows, softmax": (
        lambda door, s: [[1 - sigmoid(b - a), sigmoid(b - a)] for a, b in zip(OTHER_ROW, s, strict=True)],
        *["softmax"] * 3,
    ),
}
"""What a server makes of a door and the right scores; and what is said of messages, text and ids."""


@contextmanager
def standing_in(kind, fault, model="m"):
    """A server that answers as vLLM or SGLang does, but for the fault; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            self.answer({"data": [{"id": model, "owned_by": kind, "root": model}]} if self.path == "/v1/models" else {})

        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            assert self.path == "/classify"
            assert kind == "sglang" or body["model"] == model
            if "messages" in body:
                given, door, known = [body["messages"]], "messages", MESSAGES
            else:
                given = body.get("input", body.get("text", body.get("input_ids")))
                door, known = ("text", TEXTS) if isinstance(given[0], str) else ("ids", IDS)
            rows = fault(door, SCORES)
            rows = [rows[known.index(one)] for one in given]
            if kind == "sglang":
                self.answer([{"embedding": row} for row in rows])
            else:
                self.answer({"data": [{"probs": row} for row in rows]})

        def answer(self, value):
            content = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *arguments):
            pass

    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=httpd.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{httpd.server_port}"
    finally:
        httpd.shutdown()
        httpd.server_close()


@pytest.fixture
def folder(tmp_path):
    def make(labels=1):
        (tmp_path / "rmkit.json").write_text(json.dumps(contract(labels)))
        return tmp_path

    return make


@pytest.mark.parametrize("fault", FAULTS)
def test_a_server_s_fault_is_named_door_by_door(fault, folder, capsys):
    change, *named = FAULTS[fault]
    held = folder(2 if "row" in fault else 1)
    with standing_in("vllm", change) as address:
        status = check.main([address, "--model", str(held)])
    out = capsys.readouterr().out
    for door, names in zip(("messages", "text", "ids"), named, strict=True):
        line = next(line for line in out.splitlines() if line.startswith(door))
        assert line.removeprefix(door).split("(")[0].strip() == names, out
    assert status == (0 if set(named) == {"same"} else 1)
    for name in {name for names in named for name in names.split(" and ")} - {"same"}:
        assert diagnosis.MENDS[name] in " ".join(out.split()), "the way to mend it is told"
    assert ("\nexpected  -0.74, 0.31, 2.04\n" in out) == (status == 1)


def test_sglang_has_doors_for_text_and_ids(folder, capsys):
    with standing_in("sglang", FAULTS["offset"][0]) as address:
        assert check.main([f"{address}/v1", "--model", str(folder())]) == 1
    out = capsys.readouterr().out
    assert "text      constant offset" in out
    assert "ids       constant offset" in out
    assert "messages" not in out.split("expected scores")[1].split("\n\n")[0]


def test_the_folder_that_the_server_names_is_taken(folder, capsys):
    held = folder()
    with standing_in("vllm", FAULTS["same"][0], model=str(held)) as address:
        assert check.main([address]) == 0
    assert f"expected scores of {held}" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["http://127.0.0.1:9"], "no usable answer"),
        (["nowhere"], "there is no such folder"),
        ([".", "--model", "x"], "--model x: it belongs to the address of a server"),
        (["."], "it has no rmkit.json"),
    ],
)
def test_what_cannot_be_checked_is_said(arguments, told, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    try:
        status = check.main(arguments)
    except SystemExit as refused:  # by the flags alone
        status = refused.code
    assert status == 2
    assert told in " ".join(capsys.readouterr().err.replace("│", " ").split())


def test_a_server_of_another_kind_and_one_of_an_unknown_folder_are_refused(folder, capsys):
    with standing_in("tgi", FAULTS["same"][0]) as address:
        assert check.main([address, "--model", str(folder())]) == 2
    assert "not by vllm or sglang" in " ".join(capsys.readouterr().err.replace("│", " ").split())
    with standing_in("vllm", FAULTS["same"][0], model="elsewhere") as address:
        assert check.main([address]) == 2
    assert "name the folder" in " ".join(capsys.readouterr().err.replace("│", " ").split())


@pytest.mark.parametrize(
    "answer", [[], [{"embedding": []}], [{"probs": [1]}] * 3, "x", None, [{"embedding": ["a"]}] * 3]
)
def test_an_answer_of_another_form_is_the_server_s(answer):
    with pytest.raises(UserError, match="/classify"):
        server._rows(answer, "embedding", 3, "http://x")


@pytest.mark.parametrize("broken", ["{", "[]", "{}", '{"self_check": {"texts": ["a"], "scores": []}}'])
def test_a_broken_self_check_is_said(broken, tmp_path):
    (tmp_path / "rmkit.json").write_text(broken)
    with pytest.raises(UserError, match=r"the self-check of rmkit\.json cannot be read"):
        expected_of(tmp_path)


def test_what_an_older_rmkit_wrote_is_checked_by_text_alone(tmp_path, capsys):
    held = {"self_check": {"texts": TEXTS, "scores": SCORES}, "head": contract()["head"]}
    (tmp_path / "rmkit.json").write_text(json.dumps(held))
    with standing_in("vllm", FAULTS["sigmoid"][0]) as address:
        assert check.main([address, "--model", str(tmp_path)]) == 1
    out = capsys.readouterr().out
    assert "text      sigmoid" in out
    assert "ids" not in out.split("\n\n")[0].split("text")[1]


def test_a_weighted_sum_of_labels_is_the_reward():
    expected = Expected(
        texts=["a"], messages=None, ids=None, scores=[2.0], bos_doubled=None, by_label=[[1.0, 3.0]], reward=(0.5, 0.5)
    )
    assert diagnosis.diagnose(expected, [[1.0, 3.0]]).good
    assert not diagnosis.diagnose(expected, [[1.0, 2.0, 3.0]]).good


def test_a_folder_gives_the_same_through_every_door_of_transformers(tmp_path, capsys):
    folder = written(tmp_path / "FINAL", small())
    assert check.main([str(folder)]) == 0
    out = capsys.readouterr().out
    for door in ("rmkit", "messages", "text", "ids"):
        assert f"{door:<9} same" in out
