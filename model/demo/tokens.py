"""The demo model's tokens: one for each byte, and eight special ones.

A token per byte makes every text encodable, lets the model see each letter
and digit it is asked about, and makes a token's id the byte itself, so that
training rows are built without a tokenizer.
"""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

BYTES = 256
SPECIAL = (
    "<|pad|>",
    "<|end|>",
    "<|system|>",
    "<|user|>",
    "<|assistant|>",
    "<|spare0|>",
    "<|spare1|>",
    "<|spare2|>",
)
PAD, END, SYSTEM, USER, ASSISTANT = range(BYTES, BYTES + 5)
VOCABULARY = BYTES + len(SPECIAL)

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{% set known = message['role'] in ['user', 'assistant'] %}"
    "{{ '<|' + (message['role'] if known else 'system') + '|>' }}"
    "{{ message['content'] + '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


def _byte_letters() -> list[str]:
    """Return the letter that byte-level tokenizers write for each byte.

    Printable bytes stand for themselves; the others take letters from 256 on,
    in order, because a vocabulary file cannot hold control characters.
    """
    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    spare = iter(range(256, 512))
    return [chr(b) if b in printable else chr(next(spare)) for b in range(BYTES)]


def build_tokenizer() -> Tokenizer:
    """Build the byte tokenizer; a BPE without merges is what loads everywhere."""
    vocabulary = {letter: byte for byte, letter in enumerate(_byte_letters())}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in SPECIAL])
    return tokenizer


def tokenizer_config(longest: int) -> dict[str, object]:
    """Return tokenizer_config.json, with the chat template inside it."""
    return {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": SPECIAL[0],
        "eos_token": SPECIAL[1],
        "model_max_length": longest,
        "clean_up_tokenization_spaces": False,
        "chat_template": CHAT_TEMPLATE,
    }
