import json

import datasets
import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

from rmkit.batch import pairs as batch_pairs
from rmkit.batch.lengths import count
from rmkit.batch.pairs import TokenColumn, tokenise
from rmkit.config import DataConfig
from rmkit.data import conversation, demo, left_out, tokenizer
from rmkit.data.cache import features
from rmkit.data.conversation import packed
from rmkit.data.forms import detect, preferences
from rmkit.data.reading import LISTED
from rmkit.data.tokenizer import DEFAULT_TEMPLATE, encode, load_tokenizer, prepare, render
from rmkit.errors import UserError
from support.oracle import trie_tokens
from support.true_rows import TOOL, call

TURNS = [
    {"role": "user", "content": "a b"},
    {"role": "assistant", "content": "c"},
    {"role": "user", "content": "d"},
    {"role": "assistant", "content": "e f"},
]


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    datasets.disable_progress_bars()
    yield
    datasets.enable_progress_bars()


def words(extra=(), template=None, **special):
    """A tokenizer of whole words that adds BOS by itself, as Llama's does; `extra` are tokens it knows besides."""
    named = {"bos_token": "<s>", "eos_token": "</s>", **special}
    known = [*dict.fromkeys([*(t for t in named.values() if t), *extra]), "user:", "assistant:", *"abcdef", "?"]
    fast = Tokenizer(WordLevel({token: i for i, token in enumerate(known)}, unk_token="?"))
    fast.pre_tokenizer = WhitespaceSplit()
    fast.post_processor = TemplateProcessing(
        single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", known.index("<s>"))]
    )
    made = PreTrainedTokenizerFast(tokenizer_object=fast, **{k: v for k, v in named.items() if v})
    made.chat_template = template
    return made


def prepared(tokenizer):
    said = []
    return prepare(tokenizer, "NAME", said.append), said


def test_default_template_closes_with_one_eos_and_doubles_no_bos():
    tokenizer, said = prepared(words(pad_token="<pad>"))
    text = render(tokenizer, TURNS)
    assert text == "<s>user: a b\n\nassistant: c\n\nuser: d\n\nassistant: e f</s>"
    (ids,) = encode(tokenizer, [text])
    found = tokenizer.convert_ids_to_tokens(ids)
    assert found == ["<s>", "user:", "a", "b", "assistant:", "c", "user:", "d", "assistant:", "e", "f", "</s>"]
    assert len(said) == 1
    assert said[0].startswith("NAME has no chat template")
    asked = tokenizer.apply_chat_template(TURNS[:1], tokenize=False, add_generation_prompt=True)
    assert asked == "<s>user: a b\n\nassistant:"


def test_default_template_without_bos():
    tokenizer = words(pad_token="<pad>")
    tokenizer.bos_token = None
    tokenizer.chat_template = DEFAULT_TEMPLATE
    assert render(tokenizer, TURNS[:2]) == "user: a b\n\nassistant: c</s>"


def test_a_template_of_its_own_is_kept():
    tokenizer, said = prepared(words(template="{{ messages[-1]['content'] }}", pad_token="<pad>"))
    assert render(tokenizer, TURNS) == "e f"
    assert said == []
    assert encode(tokenizer, ["e f"]) == [tokenizer.convert_tokens_to_ids(["e", "f"])]


def test_neither_template_nor_eos_is_refused():
    tokenizer = words()
    tokenizer.eos_token = None
    with pytest.raises(ValueError, match=r"^--model\.name NAME: .*neither a chat template nor an EOS"):
        prepare(tokenizer, "NAME", print)


@pytest.mark.parametrize(
    ("extra", "special", "chosen"),
    [
        (["<unk>", "<pad>", "<|finetune_right_pad_id|>"], {}, "<|finetune_right_pad_id|>"),
        (["<unk>", "<pad>"], {"pad_token": "</s>"}, "<pad>"),
        (["<unk>"], {"pad_token": "</s>"}, "<unk>"),
        ([], {"pad_token": "</s>"}, "<|pad|>"),
        ([], {}, "<|pad|>"),
        (["<unk>"], {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "<unk>"),
        ([], {"eos_token": "<|endoftext|>", "pad_token": "<|endoftext|>"}, "<|pad|>"),
    ],
)
def test_a_pad_token_that_is_no_end_token_is_chosen_and_said(extra, special, chosen):
    before = words(extra, **special)
    size = len(before)
    tokenizer, said = prepared(before)
    assert tokenizer.pad_token == chosen
    assert tokenizer.pad_token_id == tokenizer.get_vocab()[chosen]
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    assert len(tokenizer) == size + (chosen == "<|pad|>")
    assert chosen in said[-1]
    assert ("no pad token" if "pad_token" not in special else f"the end token {special['pad_token']}") in said[-1]


def test_a_pad_token_that_the_template_ends_in_is_replaced():
    """The end token is what the text ends in, not what the tokenizer calls EOS."""
    template = "{% for m in messages %}{{ m['content'] + ' <end> ' }}{% endfor %}"
    tokenizer, said = prepared(words(["<end>", "<pad>"], template=template, pad_token="<end>"))
    assert tokenizer.pad_token == "<pad>"
    assert "the end token <end> as pad token" in said[0]
    candidate, _ = prepared(words(["<unk>", "<pad>"], template=template.replace("<end>", "<pad>"), pad_token=None))
    assert candidate.pad_token == "<unk>"


def test_a_pad_token_that_is_eos_is_replaced_though_the_template_ends_otherwise():
    template = "{% for m in messages %}{{ m['content'] + ' <end> ' }}{% endfor %}"
    tokenizer, _ = prepared(words(["<end>", "<pad>"], template=template, pad_token="</s>"))
    assert tokenizer.pad_token == "<pad>"


def test_a_good_pad_token_is_kept():
    tokenizer, said = prepared(words(template=DEFAULT_TEMPLATE, pad_token="?"))
    assert tokenizer.pad_token == "?"
    assert said == []


def test_load_tokenizer_prepares_what_it_finds(tmp_path):
    words().save_pretrained(tmp_path)
    said = []
    tokenizer = load_tokenizer(str(tmp_path), said.append)
    assert tokenizer.chat_template == DEFAULT_TEMPLATE
    assert tokenizer.pad_token == "<|pad|>"
    assert len(said) == 2
    with pytest.raises(ValueError, match=r"^--model\.name .*absent: no tokenizer"):
        load_tokenizer(str(tmp_path / "absent"), print)


def pair(prompt, chosen, rejected, **more):
    """A preference in the normalised form; its source is what the messages name."""
    values = {"margin": 0.0, "weight": 1.0, "target": None, "subset": "", "id": "", "source": "file:1"}
    values |= {"more": None, "ratings": None, "compared": 1.0, **more}
    sides = {k: [{"role": "assistant", "content": v}] for k, v in (("chosen", chosen), ("rejected", rejected))}
    return {"prompt": [{"role": "user", "content": prompt}], **sides, **values}


def table(*rows):
    return Dataset.from_list(list(rows), features=features())


def tokenised(rows, max_length=64, tokenizer=None, **data):
    said = []
    found = tokenise(
        rows, tokenizer or prepared(words(pad_token="<pad>"))[0], DataConfig(**data), max_length, said.append
    )
    return found, said


def test_both_sides_are_the_rendered_conversations_and_end_in_the_end_token():
    tokenizer, _ = prepared(words(pad_token="<pad>"))
    rows = [pair("a b", "c", "d e", margin=0.5, weight=2.0, target=0.5, source="x:3"), pair("f", "a", "b")]
    found, said = tokenised(table(*rows), tokenizer=tokenizer)
    assert said == []
    assert len(found) == 2
    for i, row in enumerate(rows):
        for side in ("chosen", "rejected"):
            column = getattr(found, side)
            (wanted,) = encode(tokenizer, [render(tokenizer, row["prompt"] + row[side])])
            assert column[i].dtype == np.int32
            assert column[i].tolist() == wanted
            assert column.lengths[i] == len(wanted)
            assert wanted[-1] == tokenizer.eos_token_id
            assert wanted.count(tokenizer.eos_token_id) == wanted.count(tokenizer.bos_token_id) == 1
    assert found.labels["margin"].tolist() == [0.5, 0.0]
    assert found.labels["weight"].tolist() == [2.0, 1.0]
    assert found.labels["target"][0] == 0.5
    assert np.isnan(found.labels["target"][1])
    assert list(found.source) == ["x:3", "file:1"]


def test_groups_are_equal_exactly_where_prompts_are():
    turn = {"role": "system", "content": "a"}
    rows = [pair("a", "b", "c"), pair("a ", "b", "c"), pair("b", "a", "c"), pair("a", "c", "d")]
    rows += [{**rows[0], "prompt": [turn, *rows[0]["prompt"]]}, {**rows[0], "prompt": [{**turn, "role": "user"}]}]
    group = tokenised(table(*rows))[0].group.tolist()
    assert [group[0] == g for g in group] == [True, False, False, True, False, True]
    assert sorted(set(group)) == list(range(len(set(group)))) == [0, 1, 2, 3]


# Tokens of a side: BOS, user:, a, assistant:, the response, EOS.
LONG, SHORT = "b c d", "e"


def sides_of(found, tokenizer):
    return [
        [" ".join(tokenizer.convert_ids_to_tokens(column[0].tolist()))] for column in (found.chosen, found.rejected)
    ]


def test_overlong_is_dropped_and_counted():
    rows = [pair("a", LONG, SHORT), pair("a", SHORT, LONG), pair("a", SHORT, "f", margin=7.0, source="x:9")]
    found, said = tokenised(table(*rows), 7)
    assert len(found) == 1
    assert found.labels["margin"].tolist() == [7.0]
    assert list(found.source) == ["x:9"]
    assert found.rejected[0].tolist() != found.chosen[0].tolist()
    assert found.chosen.lengths.tolist() == [6]
    assert said == ["dropped 2 of 3 pairs: over-long (more than 7 tokens)"]
    assert found.dropped == {"over-long (more than 7 tokens)": 2}
    assert found.chosen.rows.tolist() == found.rejected.rows.tolist() == [2]
    assert len(tokenised(table(*rows), 8)[0]) == 3


@pytest.mark.parametrize(
    ("overlong", "chosen", "rejected"),
    [
        ("keep-start", "<s> user: a assistant: b c", "<s> user: a assistant: e </s>"),
        ("keep-end", "a assistant: b c d </s>", "<s> user: a assistant: e </s>"),
    ],
)
def test_overlong_is_cut(overlong, chosen, rejected):
    tokenizer, _ = prepared(words(pad_token="<pad>"))
    found, said = tokenised(table(pair("a", LONG, SHORT)), 6, tokenizer, overlong=overlong)
    assert sides_of(found, tokenizer) == [[chosen], [rejected]]
    assert found.chosen.lengths.tolist() == found.rejected.lengths.tolist() == [6]
    assert said == []


def test_overlong_error_names_the_first_pair():
    rows = [pair("a", "b", "c"), pair("a", SHORT, LONG, source="x:5"), pair("a", LONG, SHORT, source="x:6")]
    with pytest.raises(ValueError, match=r"^x:5: 8 tokens, more than the limit of 7"):
        tokenised(table(*rows), 7, overlong="error")
    assert len(tokenised(table(*rows), 8, overlong="error")[0]) == 3


def test_pairs_that_teach_nothing_are_dropped_by_their_reason():
    rows = [pair("a", "b", "b "), pair("a", LONG + " e", LONG + " f"), pair("a", "e", "f")]
    found, said = tokenised(table(*rows), 7, overlong="keep-start")
    assert len(found) == 1
    assert said == ["dropped 2 of 3 pairs: chosen and rejected are the same tokens"]


def test_a_side_that_ends_in_the_pad_token_is_dropped():
    tokenizer = words(template="{{ messages[-1]['content'] }}", pad_token="?")
    found, said = tokenised(
        table(pair("a", "b zzz", "c"), pair("a", "c", "zzz"), pair("a", "zzz b", "c")), 9, tokenizer
    )
    assert len(found) == 1
    assert said == ["dropped 2 of 3 pairs: ends in the pad token, which other readers would not score"]


def test_a_side_without_tokens_is_dropped():
    tokenizer = words(template="{{ messages[-1]['content'] }}", pad_token="<pad>")
    found, said = tokenised(table(pair("a", " ", "c"), pair("a", "c", " "), pair("a", "b", "c")), 9, tokenizer)
    assert len(found) == 1
    assert said == ["dropped 2 of 3 pairs: no token is left of a side"]


def test_nothing_left_is_refused():
    with pytest.raises(ValueError, match="no pair is left of 1"):
        tokenised(table(pair("a", LONG, SHORT)), 3)
    with pytest.raises(ValueError, match="no pair is left of 0"):
        tokenised(Dataset.from_dict({name: [] for name in features()}, features=features()))


def test_a_template_that_refuses_names_the_source():
    template = "{% if messages[0]['content'] == 'b' %}{{ raise_exception('no b') }}{% endif %}" + DEFAULT_TEMPLATE
    rows = table(pair("a", "c", "d"), pair("b", "c", "d", source="x.jsonl:17"))
    told = (
        r"^x\.jsonl:17: the chat template refuses this conversation: no b; --data\.bad-rows drop leaves such pairs out"
    )
    with pytest.raises(UserError, match=told):
        tokenised(rows, tokenizer=words(template=template, pad_token="<pad>"))


@pytest.mark.parametrize("workers", [0, 2])
def test_pairs_that_a_template_refuses_are_left_out_where_bad_rows_are(tmp_path, workers):
    """Of each the place is said; the cache of the one is not served to the other."""
    template = "{% if messages[-1]['content'] == 'b' %}{{ raise_exception('no b') }}{% endif %}" + DEFAULT_TEMPLATE
    rows = [pair("a", "c", "d", source="x:1"), *(pair("a", "c", "b", source=f"x:{i}") for i in range(2, 30))]
    rows += [pair("a", "d", "c", source="x:30"), pair("a", LONG, "d", source="x:31")]
    Dataset.from_list(rows, features=features()).save_to_disk(tmp_path / "rows")
    rows = datasets.load_from_disk(tmp_path / "rows")
    made = prepared(words(template=template, pad_token="<pad>"))[0]
    for _ in range(2):  # from the cache too
        found, said = tokenised(rows, 7, made, bad_rows="drop", workers=workers)
        assert found.source == ["x:1", "x:30"]
        assert found.dropped == {"over-long (more than 7 tokens)": 1, "refused by the chat template": 28}
        assert len(found) + sum(found.dropped.values()) == len(rows)
        named = [line for line in said if "refuses" in line]
        assert named == [
            f"dropped x:{i}: the chat template refuses this conversation: no b" for i in range(2, 2 + LISTED)
        ]
        assert "dropped 28 of 31 pairs: refused by the chat template" in said
        with pytest.raises(UserError, match=r"^x:2: the chat template refuses"):
            tokenised(rows, 7, made, workers=workers)
    assert [ids.tolist() for ids in found.chosen] == [
        ids.tolist() for ids in tokenised(rows.select([0, 29]), 9, made)[0].chosen
    ]


def test_a_template_that_refuses_every_pair_leaves_none():
    made = words(template="{{ raise_exception('no') }}", pad_token="<pad>")
    with pytest.raises(UserError, match=r"no pair is left of 1 \(1 refused by the chat template\)$"):
        tokenised(table(pair("a", "c", "d")), tokenizer=made, bad_rows="drop")


def test_the_second_call_reads_the_cache_and_every_setting_has_its_own(monkeypatch, tmp_path):
    Dataset.from_list([pair("a", "b", "c"), pair("a", LONG, SHORT)], features=features()).save_to_disk(
        tmp_path / "rows"
    )
    rows = datasets.load_from_disk(tmp_path / "rows")
    rendered, real = [], tokenizer.render

    def counted(tokenizer, messages, options=None):
        rendered.append(1)
        return real(tokenizer, messages, options)

    def renders(max_length=64, template=DEFAULT_TEMPLATE, rows=rows, **data):
        rendered.clear()
        found, said = tokenised(rows, max_length, prepared(words(template=template, pad_token="<pad>"))[0], **data)
        return sum(rendered), [s.tolist() for s in found.chosen], said

    for module in (batch_pairs, tokenizer):
        monkeypatch.setattr(module, "render", counted)
    probe = 1  # of prepare
    first = renders(7)
    assert first[0] == probe + 4
    assert renders(7) == (probe, *first[1:])  # what was dropped is said again
    for other in (
        {"max_length": 8},
        {"max_length": 7, "overlong": "keep-end"},
        {"max_length": 7, "template": DEFAULT_TEMPLATE + " "},
        {"max_length": 7, "bad_rows": "drop"},
        {"max_length": 7, "rows": rows.select([0])},
    ):
        assert renders(**other)[0] > probe, other
        assert renders(**other)[0] == probe, other


def same_columns(found, wanted):
    for side in ("chosen", "rejected"):
        a, b = getattr(found, side), getattr(wanted, side)
        assert [s.tolist() for s in a] == [s.tolist() for s in b]
        assert a.lengths.tolist() == b.lengths.tolist()


def many(n):
    rng = np.random.default_rng(0)
    return [
        pair(" ".join(rng.choice(list("abcdef"), rng.integers(1, 9))), f"a {'b ' * (i % 5)}", "c", source=f"x:{i}")
        for i in range(n)
    ]


def test_lengths_count_the_trie_of_every_group():
    """With pairs dropped, alone on their prompt and in company."""
    rows = many(450) + [pair("a b", "c " * (i % 4 + 1), "c d " * (i % 3 + 1)) for i in range(30)]
    found, _ = tokenised(table(*rows), 16)
    assert 0 < found.dropped["over-long (more than 16 tokens)"] < 100
    groups = int(found.group.max()) + 1
    counts = count(found.lengths, np.arange(len(found)), found.group, groups, "trie")
    assert np.bincount(found.group).min() == 1
    assert np.bincount(found.group).max() >= 30
    for g in range(groups):
        items = np.flatnonzero(found.group == g).tolist()
        sides = [side[i] for i in items for side in (found.chosen, found.rejected)]
        assert counts.tokens[g] == trie_tokens(sides)
        assert counts.longest[g] == max(map(len, sides))


def test_columns_over_several_chunks():
    rows, tokenizer = many(450), prepared(words(pad_token="<pad>"))[0]
    alone = [tokenised(table(row), 99, tokenizer)[0] for row in rows[::90]]
    wanted, _ = tokenised(table(*rows), 99, tokenizer)
    for i, one in zip(range(0, 450, 90), alone, strict=True):
        assert wanted.chosen[i].tolist() == one.chosen[0].tolist()
    parts = [table(*rows[:7]), table(*rows[7:300]), table(*rows[300:])]
    same_columns(tokenised(concatenate_datasets(parts), 99, tokenizer)[0], wanted)
    short, said = tokenised(table(*rows), 10, tokenizer)
    kept = [i for i in range(450) if max(wanted.chosen.lengths[i], wanted.rejected.lengths[i]) <= 10]
    assert 50 < len(kept) < 400
    assert list(short.source) == [f"x:{i}" for i in kept]
    assert [s.tolist() for s in short.chosen] == [wanted.chosen[i].tolist() for i in kept]
    assert said == [f"dropped {450 - len(kept)} of 450 pairs: over-long (more than 10 tokens)"]


def test_two_worker_processes_give_the_same():
    rows, tokenizer = table(*many(60)), prepared(words(pad_token="<pad>"))[0]
    two, _ = tokenised(rows, 99, tokenizer, workers=2)
    datasets.config.HF_DATASETS_CACHE = datasets.config.HF_DATASETS_CACHE.with_name("another")
    one, _ = tokenised(rows, 99, tokenizer, workers=1)
    same_columns(two, one)
    assert two.group.tolist() == one.group.tolist()


def test_a_thousand_workers_are_not_started(monkeypatch):
    monkeypatch.setattr(batch_pairs.os, "cpu_count", lambda: 1)
    monkeypatch.setattr(batch_pairs, "WORKERS_A_CORE", 1)
    _, said = tokenised(table(*many(60)), 99, prepared(words(pad_token="<pad>"))[0], workers=1000)
    assert said == ["--data.workers 1000: 1 start, 1 for each core of this machine"]


def test_token_column_of_chunks_slices_and_empty_rows():
    def ids(*rows):
        return Dataset.from_dict({"x": [np.array(row, np.int32) for row in rows]}, features=FEATURES_X)

    dataset = concatenate_datasets([ids([1], [2, 3]), ids([], [4, 5, 6]), ids([7], [8, 9]).select(range(1, 2))])
    column = TokenColumn(dataset, "x", np.array([4, 0, 3, 2, 1]))
    assert len(column) == 5
    assert [column[i].tolist() for i in range(5)] == [[8, 9], [1], [4, 5, 6], [], [2, 3]]
    assert column.lengths.tolist() == [2, 1, 3, 0, 2]


FEATURES_X = datasets.Features({"x": datasets.List(datasets.Value("int32"))})


def test_the_demo_tokenises_without_loss():
    drawn = zip(demo.preferences("test"), range(30), strict=False)
    rows = table(*({**packed(row), "source": "demo"} for row, _ in drawn))
    found, said = tokenised(rows, 64, demo.tokenizer())
    assert (len(found), said) == (30, [])
    assert np.bincount(found.group).tolist() == [3] * 10


@pytest.mark.parametrize(
    "template",
    ["{{ 1 // 0 }}", "{{ messages + 1 }}", "{{ nothing.at.all }}", "{% broken", "{{ raise_exception('no') }}", ""],
)
def test_a_chat_template_that_fails_is_a_sentence(tmp_path, template):
    """A template is a program of the model's author."""
    demo.tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=r"^--model.name .*: its tokenizer cannot be used"):
        load_tokenizer(str(tmp_path), print)


@pytest.mark.parametrize(
    ("file", "change"),
    [
        ("tokenizer.json", {"model": 3}),
        ("tokenizer.json", {"added_tokens": "x"}),
        ("tokenizer_config.json", {"bos_token": [1]}),
    ],
)
def test_tokenizer_files_that_hold_something_else_are_a_sentence(tmp_path, file, change):
    demo.tokenizer().save_pretrained(tmp_path)
    values = json.loads((tmp_path / file).read_text())
    (tmp_path / file).write_text(json.dumps({**values, **change}))
    with pytest.raises(ValueError, match=r"^--model.name .*: no tokenizer could be loaded there"):
        load_tokenizer(str(tmp_path), print)


@pytest.mark.parametrize("module", [batch_pairs, tokenizer, conversation, left_out])
def test_a_change_of_any_part_of_the_code_serves_no_stale_tokens(module, monkeypatch, tmp_path):
    """The rendering stands in data/tokenizer, what is rendered in data/conversation, the tokenising in batch/pairs."""
    table(pair("a", "b", "c")).save_to_disk(tmp_path / "rows")  # what is in memory alone is not cached
    rows, rendered, real = datasets.load_from_disk(tmp_path / "rows"), [], batch_pairs.render

    def counted(tokenizer, messages, options=None):
        rendered.append(1)
        return real(tokenizer, messages, options)

    monkeypatch.setattr(batch_pairs, "render", counted)
    tokenised(rows)
    changed = tmp_path / "changed.py"
    changed.write_text("# another version\n")
    monkeypatch.setattr(module, "__file__", str(changed))
    tokenised(rows)
    assert len(rendered) == 4
    tokenised(rows)
    assert len(rendered) == 4


TOOLS = (
    "{{ bos_token }}{% for t in tools or [] %}{{ t.function.name }} {% endfor %}{% for m in messages %}"
    "{% if m.role != 'system' %}{{ m.role }}: {{ m.content or '' }}"
    "{% for c in m.tool_calls or [] %}{{ c.function.arguments.city }}{% endfor %} {% endif %}{% endfor %}"
    "{{ eos_token }}"
)


def of_rows(*rows, template=TOOLS):
    """Rows of any form through the cache's columns, as a file's are."""
    made = [packed(p) | {"source": f"file:{i}"} for i, row in enumerate(rows) for p in preferences(row, detect(row))]
    return tokenised(table(*made), tokenizer=prepared(words(template=template, pad_token="<pad>"))[0])


def test_the_template_gets_whole_messages_and_tools():
    sides = {side: [call(city)] for side, city in (("chosen", "a"), ("rejected", "b"))}
    found, said = of_rows({"prompt": "c", **sides, "tools": [TOOL]}, {"prompt": "c", **sides})
    assert said == []
    with_tools, without = (found.chosen[i].tolist() for i in (0, 1))
    assert len(with_tools) == len(without) + 1
    assert found.chosen[1].tolist() != found.rejected[1].tolist(), "the sides differ in their tool calls alone"
    assert found.group[0] != found.group[1], "a prompt with tools is another prompt"


def test_what_the_template_leaves_out_is_said_and_counted():
    system = {"prompt": "a", "chosen": "b", "rejected": "c", "system": "d"}
    plain = {"prompt": "a", "chosen": "b", "rejected": "c"}
    weighed = {**plain, "chosen": [{"role": "assistant", "content": "d", "weight": 1}]}
    said = of_rows(plain, system, system, weighed)[1]
    assert said == [
        "warning: the chat template leaves out messages of role system (in 2 of 4 pairs): it is not scored",
        "not used by the chat template: field weight of role assistant",
    ]
    tools = {"prompt": "a", "chosen": [call("b")], "rejected": [call("c")], "tools": [TOOL]}
    with pytest.raises(ValueError, match="no pair is left of 1"):
        of_rows(tools, template=DEFAULT_TEMPLATE.replace("message['content']", "(message['content'] or '')"))


def test_a_tool_call_that_the_template_has_no_place_for_is_a_sentence():
    rows = {"prompt": "a", "chosen": [call("b")], "rejected": [call("c")]}
    with pytest.raises(ValueError, match=r"^file:0: the chat template refuses .*a tool call without content"):
        of_rows(rows, template=DEFAULT_TEMPLATE)
