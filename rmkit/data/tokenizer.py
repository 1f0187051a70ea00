"""The tokenizer of a model, and how a conversation becomes tokens.

A conversation (prompt + one response) is rendered by the chat template and encoded without further special tokens: the
template alone adds BOS and EOS, so neither is doubled. The end token, whose hidden state is scored, is the last token
of the rendered text. TRL and HALOs render the same way.
"""

from collections.abc import Callable
from collections.abc import Sequence as SequenceOf
from typing import Any

import jinja2
from transformers import AutoTokenizer, PreTrainedTokenizerBase

from rmkit.errors import UserError, brief, plain

DEFAULT_TEMPLATE = (
    "{{ bos_token }}{% for message in messages %}{{ '\n\n' if not loop.first else '' }}"
    "{{ message['role'] + ': ' + message['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '\n\nassistant:' }}{% else %}{{ eos_token }}{% endif %}"
)
"""The template for base models, which have none: role and content of each turn, closed by one EOS."""

PAD_CANDIDATES = (
    "<|finetune_right_pad_id|>",
    "<|reserved_special_token_0|>",
    "<pad>",
    "<|pad|>",
    "[PAD]",
    "<unk>",
    "<|endoftext|>",
)
"""Tokens that serve as pad token where a vocabulary has them, because no rendered text uses them; the best first."""

PROBE = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Hi"}]


def load_tokenizer(name: str, say: Callable[[str], None]) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a folder or hub id, and `prepare` it.

    Raises ValueError where there is none, or where it has no EOS to close the default template with.
    """
    try:
        tokenizer = AutoTokenizer.from_pretrained(name)
    except Exception as error:  # whatever a library says of files that do not hold what they should
        raise UserError("model.name", name, f"no tokenizer could be loaded there ({brief(error)})") from error
    try:
        return prepare(tokenizer, name, say)
    except (TypeError, AttributeError, KeyError, IndexError, jinja2.TemplateError) as error:
        raise UserError("model.name", name, f"its tokenizer cannot be used ({brief(error)})") from error


def prepare(tokenizer: PreTrainedTokenizerBase, name: str, say: Callable[[str], None]) -> PreTrainedTokenizerBase:
    """Give a tokenizer a chat template and a pad token that ends no conversation, where it has none; says which."""
    if tokenizer.chat_template is None:
        if tokenizer.eos_token is None:
            raise UserError("model.name", name, "the tokenizer has neither a chat template nor an EOS token; set one")
        tokenizer.chat_template = DEFAULT_TEMPLATE
        say(f"{name} has no chat template: 'role: content' turns closed by {tokenizer.eos_token} are used")
    # The template writes every special token. Without this, whoever sends rendered text to the tokenizer that is saved
    # gets a second BOS, or one that no conversation of the training had.
    tokenizer.add_bos_token = tokenizer.add_eos_token = False
    ends = {end_token(tokenizer), tokenizer.eos_token_id}
    if tokenizer.pad_token_id is None or tokenizer.pad_token_id in ends:
        had = "no pad token" if tokenizer.pad_token_id is None else f"the end token {tokenizer.pad_token} as pad token"
        tokenizer.pad_token = _pad_token(tokenizer, ends)
        say(f"{name} has {had}: {tokenizer.pad_token} is used, so that no score is read one token early")
    return tokenizer


def end_token(tokenizer: PreTrainedTokenizerBase) -> int:
    """Id of the token that ends a conversation."""
    return encode(tokenizer, [render(tokenizer, PROBE)])[0][-1]


def default_template(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template that renders conversations, also where the tokenizer has several, each with a name."""
    template = tokenizer.chat_template
    return template["default"] if isinstance(template, dict) else template


def _pad_token(tokenizer: PreTrainedTokenizerBase, ends: set[int | None]) -> str:
    vocabulary = tokenizer.get_vocab()
    for token in PAD_CANDIDATES:
        if token in vocabulary and vocabulary[token] not in ends:
            return token
    tokenizer.add_special_tokens({"pad_token": "<|pad|>"})
    return "<|pad|>"


def render(
    tokenizer: PreTrainedTokenizerBase, messages: SequenceOf[dict[str, Any]], options: dict[str, Any] | None = None
) -> str:
    """The text of a conversation as it is tokenised. The template gets whole messages, and of `options` the tools and
    chat_template_kwargs. Raises jinja2.TemplateError where the template rejects it."""
    more: dict[str, Any] = {}
    if options is not None:
        more = {"tools": options.get("tools"), **(options.get("chat_template_kwargs") or {})}
    try:
        return tokenizer.apply_chat_template(list(messages), tokenize=False, **more)
    except jinja2.TemplateError as error:
        if all(message["content"] is not None for message in messages):
            raise
        why = "a message is a tool call without content, for which this template has no place"
        raise jinja2.TemplateRuntimeError(f"{error} ({why})") from error
    except Exception as error:  # a template is a program: it divides by zero, or adds what cannot be added
        raise jinja2.TemplateRuntimeError(f"{type(error).__name__}: {error}") from error


def refusal(error: jinja2.TemplateError) -> str:
    """What the chat template says against a conversation, in a line."""
    return f"the chat template refuses this conversation: {plain(' '.join(str(error).split()))[:300]}"


def encode(tokenizer: PreTrainedTokenizerBase, texts: SequenceOf[str]) -> list[list[int]]:
    """Token ids of rendered texts; no token is added and no text is cut."""
    return tokenizer(list(texts), add_special_tokens=False, truncation=False, verbose=False)["input_ids"]
