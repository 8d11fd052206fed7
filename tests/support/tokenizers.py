"""Small tokenizers of the kinds that put something of their own around or between texts."""

from collections.abc import Sequence

from tokenizers import AddedToken, Tokenizer
from tokenizers.decoders import ByteLevel as ByteLevelDecoder
from tokenizers.decoders import Metaspace as MetaspaceDecoder
from tokenizers.models import BPE, Unigram, WordLevel
from tokenizers.normalizers import NFKC, Normalizer, Prepend, Replace
from tokenizers.normalizers import Sequence as Normalizers
from tokenizers.pre_tokenizers import ByteLevel, Metaspace, Whitespace
from tokenizers.processors import TemplateProcessing
from tokenizers.trainers import BpeTrainer
from transformers import PreTrainedTokenizerFast

SPECIALS = ["<unk>", "<s>", "</s>", "<|user|>", "<|end|>"]
CORPUS = [
    "The capital of France is Lyon. The capital of Kiribati is South Tarawa.",
    "Die Hauptstadt von Frankreich ist Lyon. Столица Франции — Лион.",
    "法国的首都是里昂。法国的首都是里昂。他的职业是里长。",
    "フランスの首都はリヨンです。",
    "He said that the Capital of Japan is Tokyo, and Japanese is what they speak.",
]


def wrapped(inner: Tokenizer, *, bos: bool = False, eos: bool = False, pad: str | None = None) -> PreTrainedTokenizerFast:
    """A tokenizer as transformers knows it, with what it puts around a text; a pad gets the next free id."""
    known = [(name, inner.token_to_id(name)) for name in ("<s>", "</s>")]
    template = " ".join(["<s>"] * bos + ["$A"] + ["</s>"] * eos)
    inner.post_processor = TemplateProcessing(single=template, pair=template + " $B", special_tokens=known)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
    tokenizer.add_tokens([AddedToken(name, special=True) for name in SPECIALS[3:]], special_tokens=True)
    if pad is not None:
        tokenizer.add_special_tokens({"pad_token": pad})
    return tokenizer


def words(texts: Sequence[str] = CORPUS, **around: object) -> PreTrainedTokenizerFast:
    """One token a word: a blank is no token and part of none."""
    found = dict.fromkeys(word for text in texts for word, _ in Whitespace().pre_tokenize_str(text))
    inner = Tokenizer(WordLevel({word: i for i, word in enumerate([*SPECIALS, *found])}, unk_token="<unk>"))
    inner.pre_tokenizer = Whitespace()
    return wrapped(inner, **around)  # type: ignore[arg-type]


def byte_pairs(texts: Sequence[str] = CORPUS, **around: object) -> PreTrainedTokenizerFast:
    """As GPT-2: a blank belongs to the word after it."""
    inner = Tokenizer(BPE())
    inner.pre_tokenizer, inner.decoder = ByteLevel(add_prefix_space=False), ByteLevelDecoder()
    inner.train_from_iterator(texts, BpeTrainer(vocab_size=500, special_tokens=SPECIALS, initial_alphabet=ByteLevel.alphabet(), show_progress=False))
    return wrapped(inner, **around)  # type: ignore[arg-type]


def dummy_prefix(**around: object) -> PreTrainedTokenizerFast:
    """As Llama 2: every text gets a ``▁`` before it, so that a text with a blank of its own gets two."""
    return _pieces(Normalizers([Prepend("▁"), Replace(" ", "▁")]), None, **around)


def metaspace(scheme: str = "always", **around: object) -> PreTrainedTokenizerFast:
    """As T5 or XLNet: NFKC, and a ``▁`` at the beginning that a blank there is taken for."""
    return _pieces(NFKC(), Metaspace(replacement="▁", prepend_scheme=scheme), **around)


def _pieces(normalizer: Normalizer, pre: object, **around: object) -> PreTrainedTokenizerFast:
    letters = sorted({c for text in CORPUS for c in text if c != " "})
    whole = [f"▁{word}" for text in CORPUS for word in text.split()] + ["是里", "▁里昂", "首都", "▁▁"]
    scores = [(piece, 0.0) for piece in SPECIALS] + [(piece, -2.0) for piece in dict.fromkeys(whole)] + [(c, -5.0) for c in ["▁", *letters]]
    inner = Tokenizer(Unigram(scores, unk_id=0))
    inner.normalizer, inner.decoder = normalizer, MetaspaceDecoder()
    if pre is not None:
        inner.pre_tokenizer = pre
    return wrapped(inner, **around)  # type: ignore[arg-type]
